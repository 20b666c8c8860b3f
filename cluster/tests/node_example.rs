//! What: docs/node.toml.example compared with the file that nodes read.
//! Owns: nothing.
//! Invariants: the example parses, names every key, and shows the defaults where there are any.
//! Does not: check the words.
//! Called by: `cargo test`.
#![allow(clippy::unwrap_used, reason = "a test")]

use deadbolt_cluster::config::{FenceAgent, Heuristic, NodeFile};

fn example() -> String {
    std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/node.toml.example")).unwrap()
}

#[test]
fn the_example_is_a_node_file_with_every_key_and_the_defaults() {
    let text = example();
    let file: NodeFile = toml::from_str(&text).unwrap();
    let whole: toml::Table = toml::from_str(&toml::to_string(&file).unwrap()).unwrap();
    let shown: toml::Table = toml::from_str(&text).unwrap();
    assert_eq!(shown.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    let least: toml::Table = whole.into_iter().filter(|(key, _)| matches!(key.as_str(), "name" | "devices" | "addresses")).collect();
    let defaults: NodeFile = toml::from_str(&toml::to_string(&least).unwrap()).unwrap();
    assert_eq!(file, defaults, "a default in docs/node.toml.example is not the program's");
}

#[test]
fn the_example_of_a_fence_agent_shows_every_key_and_the_defaults() {
    let text = example();
    let lines = text.lines().skip_while(|line| *line != "#   [[fence_agents]]").map_while(|line| line.strip_prefix("#   "));
    let shown = lines.collect::<Vec<_>>().join("\n");
    let file: NodeFile = toml::from_str(&format!("{}\n{shown}\n", text.replace("\nfence_agents = []\n", "\n"))).unwrap();
    let [agent] = &file.fence_agents[..] else { panic!("{:?}", file.fence_agents) };
    let table: toml::Table = toml::from_str(&shown).unwrap();
    let shown = table["fence_agents"][0].as_table().unwrap();
    let whole = toml::Table::try_from(agent).unwrap();
    assert_eq!(shown.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    let is_needed = |key: &str| matches!(key, "node" | "program" | "parameters");
    let least: toml::Table = whole.into_iter().filter(|(key, _)| is_needed(key)).collect();
    assert_eq!(agent, &least.try_into::<FenceAgent>().unwrap(), "a default in docs/node.toml.example is not the program's");
}

#[test]
fn the_example_of_heuristics_shows_every_key_and_the_defaults() {
    let text = example();
    let lines = text.lines().skip_while(|line| *line != "#   [[heuristics]]");
    let shown: Vec<&str> = lines.take_while(|line| line.starts_with('#')).filter_map(|line| line.strip_prefix("#   ")).collect();
    let file: NodeFile = toml::from_str(&format!("{}\n{}\n", text.replace("\nheuristics = []\n", "\n"), shown.join("\n"))).unwrap();
    let [program, connect] = &file.heuristics[..] else { panic!("{:?}", file.heuristics) };
    let keys = toml::Table::try_from(program).unwrap().keys().cloned().collect::<Vec<_>>().join(" ");
    let shown: toml::Table = toml::from_str(&shown.join("\n")).unwrap();
    assert_eq!(shown["heuristics"][0].as_table().unwrap().keys().cloned().collect::<Vec<_>>().join(" "), keys);
    let defaults = |other: &Heuristic| Heuristic {
        interval_s: program.interval_s,
        timeout_s: program.timeout_s,
        weight: program.weight,
        ..other.clone()
    };
    assert_eq!(connect, &defaults(connect), "a default in docs/node.toml.example is not the program's");
}

#[test]
fn an_unknown_key_is_refused() {
    assert!(toml::from_str::<NodeFile>(&format!("{}\nvotes = 1\n", example())).is_err());
}
