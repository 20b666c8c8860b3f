//! What: `cargo xtask tidy`: small rules of the tree that no compiler checks.
//! Owns: the rules: ASCII, file heads, file sizes, no marks of unfinished work.
//! Invariants: reads only; every finding names file, line and rule.
//! Does not: format or lint (`cargo fmt` and `cargo clippy` do).
//! Called by: `.ci/run` and people.

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

/// Larger files belong into a release, not into the tree.
const BYTES_MAX: u64 = 1 << 20;
/// Folders that are no part of the tree.
const SKIPPED: [&str; 2] = ["target", ".git"];
/// Bytes that fuzzers found: data, no text.
const DATA: &str = "fuzz/corpus";
/// What the head of a source file says.
const HEAD: [&str; 5] = ["What:", "Owns:", "Invariants:", "Does not:", "Called by:"];
/// The head stands within the first lines of a file.
const HEAD_LINES_MAX: usize = 20;
/// Marks of unfinished work, in two parts so that this file is not found.
const MARKS: [(&str, &str); 4] = [("TO", "DO"), ("FIX", "ME"), ("todo", "!("), ("unimplemented", "!(")];

/// A broken rule.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) struct Finding {
    path: PathBuf,
    line: usize,
    rule: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path.display(), self.line, self.rule)
    }
}

/// Checks every file below `root`.
pub(crate) fn check_tree(root: &Path) -> io::Result<(usize, Vec<Finding>)> {
    let mut files = Vec::new();
    list(root, &mut files)?;
    files.sort();
    let mut findings = Vec::new();
    for path in &files {
        let name = path.strip_prefix(root).unwrap_or(path).to_path_buf();
        if fs::metadata(path)?.len() > BYTES_MAX {
            findings.push(Finding { path: name, line: 1, rule: format!("larger than {BYTES_MAX} bytes") });
        } else if !name.starts_with(DATA) {
            findings.extend(check_file(&name, &fs::read(path)?));
        }
    }
    Ok((files.len(), findings))
}

fn list(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let kind = entry.file_type()?;
        let is_skipped = SKIPPED.iter().any(|name| entry.file_name() == *name) || entry.path().extension().is_some_and(|end| end == "img");
        if kind.is_dir() && !is_skipped {
            list(&entry.path(), files)?;
        } else if kind.is_file() && !is_skipped {
            files.push(entry.path());
        }
    }
    Ok(())
}

/// Checks the content of one file; `name` is its path below the root.
fn check_file(name: &Path, bytes: &[u8]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut find = |line: usize, rule: String| findings.push(Finding { path: name.to_path_buf(), line: line + 1, rule });
    for (number, line) in bytes.split(|byte| *byte == b'\n').enumerate() {
        if let Some(found) = line.iter().find(|byte| !byte.is_ascii()) {
            find(number, format!("byte 0x{found:02x} is not ASCII"));
        }
        let text = String::from_utf8_lossy(line);
        for (first, second) in MARKS {
            if text.contains(&format!("{first}{second}")) {
                find(number, format!("{first}{second}: what is missing stands on the page it belongs to"));
            }
        }
    }
    if let Some(missing) = missing_in_head(name, &String::from_utf8_lossy(bytes)) {
        find(0, missing);
    }
    findings
}

/// What a source file's head lacks. Programs of a few lines and files of tests need only say what they are.
fn missing_in_head(name: &Path, text: &str) -> Option<String> {
    let is_source = name.extension().is_some_and(|end| end == "rs") && name.components().any(|part| part.as_os_str() == "src");
    if !is_source {
        return None;
    }
    let head: Vec<&str> = text.lines().take(HEAD_LINES_MAX).filter_map(|line| line.strip_prefix("//!")).map(str::trim).collect();
    let is_small = name.parent().is_some_and(|folder| folder.ends_with("src/bin"))
        || name.components().skip_while(|part| part.as_os_str() != "src").any(|part| is_tests(part.as_os_str()));
    if head.is_empty() {
        return Some("no head: begin the file with //! lines that say what it is".into());
    }
    let missing: Vec<&str> = HEAD.into_iter().filter(|part| !head.iter().any(|line| line.starts_with(part))).collect();
    (!is_small && !missing.is_empty()).then(|| format!("the head lacks {}", missing.join(" ")))
}

fn is_tests(part: &std::ffi::OsStr) -> bool {
    part == "tests.rs" || part == "tests"
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(name: &str, text: &[u8]) -> Vec<String> {
        check_file(Path::new(name), text).into_iter().map(|finding| finding.to_string()).collect()
    }

    const GOOD: &str = "//! What: a.\n//! Owns: b.\n//! Invariants: c.\n//! Does not: d.\n//! Called by: e.\n";

    #[test]
    fn a_good_file_has_no_findings() {
        assert!(rules("disk/src/a.rs", GOOD.as_bytes()).is_empty());
        assert!(rules("disk/src/bin/a.rs", b"//! The program.\nfn main() {}\n").is_empty());
        assert!(rules("disk/tests/a.rs", b"fn a() {}\n").is_empty());
        assert!(rules("docs/a.md", b"words\n").is_empty());
    }

    #[test]
    fn each_rule_finds_its_mistake() {
        assert_eq!(rules("docs/a.md", "a\nb\u{e9}\n".as_bytes()), ["docs/a.md:2: byte 0xc3 is not ASCII"]);
        assert_eq!(rules("disk/src/a.rs", b"fn a() {}\n").len(), 1);
        assert_eq!(rules("disk/src/a.rs", GOOD.replace("Owns", "Has").as_bytes()), ["disk/src/a.rs:1: the head lacks Owns:"]);
        for (first, second) in MARKS {
            assert_eq!(rules("docs/a.md", format!("x {first}{second} y").as_bytes()).len(), 1, "{first}");
        }
    }

    #[test]
    fn this_tree_is_tidy() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
        let (files, findings) = check_tree(&root).unwrap();
        assert!(files > 100, "only {files} files were found");
        let text: Vec<String> = findings.iter().map(Finding::to_string).collect();
        assert!(findings.is_empty(), "{}", text.join("\n"));
    }
}
