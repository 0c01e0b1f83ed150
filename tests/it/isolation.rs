//! What one client does is felt by that client alone.
