//! Lock service and client library.
