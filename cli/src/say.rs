//! What: standard output that can fail.
//! Owns: the macro `say!`.
//! Invariants: a result that could not be written is a failure, said on standard error; nothing panics over a full disk.
//! Does not: format.
//! Called by: every verb.

/// A line on standard output.
macro_rules! say {
    ($($part:tt)*) => {
        if let Err(error) = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($part)*))) {
            $crate::say::cannot_write(&error);
        }
    };
}

/// Ends the program: what it had to say was lost.
#[allow(clippy::exit, reason = "there is nobody left to tell")]
pub fn cannot_write(error: &std::io::Error) -> ! {
    eprintln!("deadbolt: standard output: {error}");
    std::process::exit(i32::from(crate::verbs::EXIT_FAILED))
}
