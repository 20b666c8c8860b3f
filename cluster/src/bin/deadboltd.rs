//! The program `deadboltd`.

fn main() -> std::process::ExitCode {
    deadbolt_cluster::program::main_from(std::env::args_os().collect()).into()
}
