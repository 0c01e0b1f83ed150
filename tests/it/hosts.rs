//! Which host names are served, and what happens to the others.
