//! Sizes and forms of requests that are refused, each as a `Status` that names the setting.
