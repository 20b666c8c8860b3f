//! What: the kept corpus, replayed; the mutator, for a few seconds; what a check may allocate.
//! Owns: the bounds on corpus and memory.
//! Invariants: a fuzz target, its corpus and its check have one name; the seeds stand in the corpus.
//! Does not: write, but for `DEADBOLT_CORPUS=write`, which puts the seeds there.
//! Called by: cargo test.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(missing_docs, reason = "a test program has no interface")]

use deadbolt_parsers::mutate::Mutator;
use deadbolt_parsers::{TARGETS, Target};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Bytes of one target's corpus: small enough to be read by people, and for all of them to stay far below a megabyte.
const CORPUS_BYTES_MAX: u64 = 24 << 10;
/// What a check may have allocated at once: far above what it needs for inputs of a few KiB, far below a length taken from one.
const LIVE_BYTES_MAX: usize = 1 << 20;
/// `device` works on copies of a device.
const LIVE_BYTES_MAX_OF_DEVICE: usize = 24 << 20;

thread_local! {
    static LIVE: Cell<usize> = const { Cell::new(0) };
    static MOST: Cell<usize> = const { Cell::new(0) };
}

/// Counts what a thread has allocated.
struct Counting;

// SAFETY: every call goes to the system's allocator with the same arguments; the counters allocate nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        LIVE.set(LIVE.get().wrapping_add(layout.size()));
        // What was allocated elsewhere may be freed here: a count below zero is none.
        if LIVE.get() < usize::MAX / 2 {
            MOST.set(MOST.get().max(LIVE.get()));
        }
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.set(LIVE.get().wrapping_sub(layout.size()));
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Runs a check; a panic or too much memory names the input.
fn run(target: &Target, input: &[u8]) {
    let (before, most) = (LIVE.get(), if target.name == "device" { LIVE_BYTES_MAX_OF_DEVICE } else { LIVE_BYTES_MAX });
    MOST.set(before);
    let shown = || input.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let result = std::panic::catch_unwind(|| (target.check)(input));
    assert!(result.is_ok(), "{}: the input {} makes the check panic (see above)", target.name, shown());
    let used = MOST.get().wrapping_sub(before);
    assert!(used <= most, "{}: {used} bytes allocated at once for the input {}", target.name, shown());
}

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

fn names_in(folder: &Path) -> BTreeSet<String> {
    std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = root().join("fuzz/corpus").join(target.name);
    names_in(&folder).into_iter().map(|name| (name.clone(), std::fs::read(folder.join(name)).unwrap())).collect()
}

#[test]
fn every_check_has_its_fuzz_target_and_its_corpus() {
    let names: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(names.len(), TARGETS.len(), "a name twice");
    if std::env::var("DEADBOLT_CORPUS").is_ok_and(|value| value == "write") {
        for target in TARGETS {
            let folder = root().join("fuzz/corpus").join(target.name);
            std::fs::create_dir_all(&folder).unwrap();
            for (number, seed) in (target.seeds)().iter().enumerate() {
                std::fs::write(folder.join(format!("seed-{number:02}")), seed).unwrap();
            }
        }
    }
    assert_eq!(names_in(&root().join("fuzz/corpus")), names);
    let programs: BTreeSet<String> = names_in(&root().join("fuzz/fuzz_targets")).iter().map(|name| name.replace(".rs", "")).collect();
    assert_eq!(programs, names);
    let manifest = std::fs::read_to_string(root().join("fuzz/Cargo.toml")).unwrap();
    for target in TARGETS {
        let name = target.name;
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name} is not in fuzz/Cargo.toml");
        let program = std::fs::read_to_string(root().join(format!("fuzz/fuzz_targets/{name}.rs"))).unwrap();
        assert!(program.contains(&format!("deadbolt_parsers::check_{name}(bytes)")), "{name} checks something else");
        let kept = corpus(target);
        let bytes: u64 = kept.iter().map(|(_, input)| input.len() as u64).sum();
        assert!(bytes <= CORPUS_BYTES_MAX, "{name}: {bytes} bytes of corpus");
        for seed in (target.seeds)() {
            assert!(kept.iter().any(|(_, input)| *input == seed), "{name}: a seed is not in the corpus; see docs/testing.md");
        }
    }
}

#[test]
fn the_kept_corpus_finds_nothing() {
    for target in TARGETS {
        let kept = corpus(target);
        assert!(!kept.is_empty(), "{}", target.name);
        for (_, input) in kept {
            run(target, &input);
        }
    }
}

#[test]
fn mutations_find_nothing() {
    for target in TARGETS {
        let inputs: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, input)| input).collect();
        let mut mutator = Mutator::new(u64::from(crc32fast::hash(target.name.as_bytes())));
        let start = std::time::Instant::now();
        for _ in 0..target.rounds {
            run(target, &mutator.mutate(&inputs));
        }
        println!("{}: {} mutations in {} ms", target.name, target.rounds, start.elapsed().as_millis());
    }
}
