//! S8: nothing depends on a wall clock. The same seed with other wall clocks is the same run, event by event.

use deadbolt_simulator::{Plan, run};

#[test]
fn other_wall_clocks_change_nothing() {
    for seed in 1..=6 {
        let shown = |wall: u64| {
            let mut plan = Plan::new(seed, false);
            plan.options.wall = wall;
            plan.options.safety_s = plan.options.safety_s.min(20);
            let outcome = run(&plan, false);
            (outcome.hash, outcome.events, outcome.granted)
        };
        let first = shown(0);
        for wall in [1, 999_999] {
            assert_eq!(shown(wall), first, "seed {seed}, wall clocks {wall}");
        }
    }
}
