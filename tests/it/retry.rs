//! What is sent once more and what never is.
