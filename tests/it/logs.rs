//! What is logged of a request, and what never is.
