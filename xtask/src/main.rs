//! Project chores: `cargo xtask <verb>`.
fn main() -> anyhow::Result<()> {
    anyhow::bail!("usage: cargo xtask <verb>")
}
