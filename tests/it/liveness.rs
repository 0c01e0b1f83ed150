//! Dead peers are noticed, living ones are left alone.
