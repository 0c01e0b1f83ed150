//! Answers that come before the request has ended, 1xx, and bodiless responses.
