//! What: what must hold for every parser whatever bytes it is given, one function per parser.
//! Owns: the checks.
//! Invariants: a check panics when its property does not hold, and for no other reason.
//! Does not: invent inputs.
//! Called by: the tests beside it, the fuzz targets.
