//! Apiservers that do not prove who they are, or that cannot be reached: nothing is sent to them.
