//! Seeds that once broke a promise hold now; each file of `kept/` says what was mended.

use deadbolt_simulator::{kept::Kept, report, run};
use std::{fs, path::Path};

#[test]
fn kept_seeds_hold() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("kept");
    let mut paths: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "txt"));
    paths.sort();
    let mut failures = Vec::new();
    for path in &paths {
        let text = fs::read_to_string(path).unwrap();
        let kept = Kept::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let outcome = run(&kept.plan, false);
        if !outcome.violations.is_empty() {
            failures.push(format!("{}: {}", path.display(), report::failure(&outcome)));
        }
    }
    println!("{} kept seeds", paths.len());
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}
