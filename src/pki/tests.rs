//! How certificates, keys and CAs are read and refused.
