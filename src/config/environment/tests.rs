//! Quotas, affinity and limits as the kernel prints them.
