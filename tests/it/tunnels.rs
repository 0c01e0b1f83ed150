//! Bytes in an upgraded connection, half-close, and its end.
