//! The program `deadbolt`.

fn main() -> std::process::ExitCode {
    deadbolt::main_from(std::env::args_os().collect()).into()
}
