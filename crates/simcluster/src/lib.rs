//! simcluster
