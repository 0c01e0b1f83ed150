//! exec, attach, cp and port-forward: the 101, its refusals, and what is never a tunnel.
