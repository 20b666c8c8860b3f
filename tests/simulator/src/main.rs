//! What: the program `deadbolt-sim`.
//! Owns: nothing.
//! Invariants: none.
//! Does not: simulate; the library does.
//! Called by: people.
#![allow(clippy::print_stdout, reason = "a program for people")]

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let first: u64 = arguments.get(1).and_then(|text| text.parse().ok()).unwrap_or(1);
    let count: u64 = arguments.get(2).and_then(|text| text.parse().ok()).unwrap_or(1);
    let started = std::time::Instant::now();
    let (mut events, mut simulated) = (0, 0);
    for seed in first..first + count {
        let options = if arguments.iter().any(|text| text == "--calm") {
            deadbolt_simulator::Options::calm()
        } else {
            deadbolt_simulator::Options::drawn(seed)
        };
        let outcome = deadbolt_simulator::run(seed, options, count == 1);
        events += outcome.events;
        simulated += outcome.simulated_us / 1_000_000;
        if count == 1 {
            outcome.lines.iter().for_each(|line| println!("{line}"));
            println!("{}", outcome.options);
        }
        if !outcome.violations.is_empty() {
            println!("seed {seed}: {:?}", outcome.violations);
        }
        if count == 1 {
            println!(
                "seed {seed}: hash {:x} events {} granted {} views {} states {}",
                outcome.hash,
                outcome.events,
                outcome.granted,
                outcome.views,
                outcome.states.len()
            );
        }
    }
    println!("{count} seeds, {events} events, {simulated} s simulated, {:?}", started.elapsed());
}
