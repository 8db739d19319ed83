#![no_main]

#[path = "../src/targets/mod.rs"]
#[allow(dead_code, unused_imports, reason = "each target calls its own function")]
mod targets;

libfuzzer_sys::fuzz_target!(|data: &[u8]| targets::log_line(data));
