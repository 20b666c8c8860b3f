#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| deadbolt_parsers::check_link_hello(bytes));
