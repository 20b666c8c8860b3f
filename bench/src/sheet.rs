//! What: rows and rounds: every case is measured once a round, in order or beside its neighbours, and each row is compared with the
//! floors of the same round.
//! Owns: the shape of a result, medians, the table for people and the object for programs.
//! Invariants: lower is better in every row; a row's ratio is the median of the rounds' ratios; no figure is made up for a case that failed.
//! Does not: know what is measured.
//! Called by: every benchmark.

use anyhow::{Result, anyhow, bail};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fmt::Write, thread};

/// How far a row is to come.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Reach {
    /// No goal: a floor, or something to know.
    None,
    /// At most this many times its floor.
    Ratio(f64),
    /// At most this, in its own unit.
    Value(f64),
    /// At most this much more than its floor, in its own unit.
    Above(f64),
}

/// One row, not measured yet.
#[derive(Clone, Debug)]
pub struct Row {
    name: &'static str,
    unit: &'static str,
    floors: &'static [&'static str],
    reach: Reach,
}

impl Row {
    /// A row without a floor and without a goal.
    #[must_use]
    pub fn new(name: &'static str, unit: &'static str) -> Self {
        Self { name, unit, floors: &[], reach: Reach::None }
    }

    /// Names the rows whose values together are its floor. They are measured before it.
    #[must_use]
    pub fn over(self, floors: &'static [&'static str]) -> Self {
        Self { floors, ..self }
    }

    /// Sets the goal.
    #[must_use]
    pub fn reach(self, reach: Reach) -> Self {
        Self { reach, ..self }
    }
}

/// What a measurement gave.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub enum Measured {
    /// One value per row of the case.
    Values(Vec<f64>),
    /// This machine or this user lacks something.
    Skipped(String),
}

enum Work {
    Alone(Box<dyn FnMut() -> Result<Measured>>),
    Beside(Box<dyn FnMut() -> Result<Measured> + Send>),
}

/// Rows that are measured together.
pub struct Case {
    rows: Vec<Row>,
    is_once: bool,
    work: Work,
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Case").field("rows", &self.rows).finish_non_exhaustive()
    }
}

impl Case {
    /// Measured in every round.
    #[must_use]
    pub fn new(rows: Vec<Row>, measure: impl FnMut() -> Result<Measured> + 'static) -> Self {
        Self { rows, is_once: false, work: Work::Alone(Box::new(measure)) }
    }

    /// Measured in every round, at one time with the neighbours that are made so too: for work that is nearly all sleep.
    #[must_use]
    pub fn beside(rows: Vec<Row>, measure: impl FnMut() -> Result<Measured> + Send + 'static) -> Self {
        Self { rows, is_once: false, work: Work::Beside(Box::new(measure)) }
    }

    /// One row, measured in every round.
    #[must_use]
    pub fn one(row: Row, mut measure: impl FnMut() -> Result<f64> + 'static) -> Self {
        Self::new(vec![row], move || Ok(Measured::Values(vec![measure()?])))
    }

    /// Measured in the first round only: it takes long and varies little.
    #[must_use]
    pub fn once(self) -> Self {
        Self { is_once: true, ..self }
    }

    fn is_beside(&self, next: &Self) -> bool {
        matches!((&self.work, &next.work), (Work::Beside(_), Work::Beside(_)))
    }
}

/// A measured row.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Figure {
    /// What, and in which regime.
    pub name: &'static str,
    /// Median over the rounds.
    pub value: f64,
    /// Unit of value and floor.
    pub unit: &'static str,
    /// Median of the floor, where there is one.
    pub floor: Option<f64>,
    /// Median of value over floor.
    pub ratio: Option<f64>,
    /// The highest ratio that is good enough; the highest value for a row without a floor.
    pub reach: Option<f64>,
    /// It is good enough.
    pub met: Option<bool>,
}

/// A row without a figure.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Missing {
    /// What was to be measured.
    pub name: &'static str,
    /// Why it was not.
    pub why: String,
}

/// The result of a benchmark.
#[derive(Clone, PartialEq, Debug, Default, Serialize)]
pub struct Sheet {
    /// What was measured.
    pub rows: Vec<Figure>,
    /// What cannot be measured here.
    pub skipped: Vec<Missing>,
    /// What went wrong.
    pub failed: Vec<Missing>,
}

/// Which rows to measure, and how often.
#[derive(Clone, Debug)]
pub struct Wishes {
    /// Rounds.
    pub rounds: usize,
    /// Only rows whose names contain this, and their floors.
    pub only: Option<String>,
}

/// The median; the lower of the two in the middle of an even number.
fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().checked_sub(1)? / 2).copied()
}

/// Names of the rows that are to be measured: the wanted ones and their floors.
fn wanted(cases: &[Case], only: Option<&str>) -> Result<Vec<&'static str>> {
    let rows = || cases.iter().flat_map(|case| &case.rows);
    let Some(only) = only else { return Ok(rows().map(|row| row.name).collect()) };
    let chosen: Vec<&Row> = rows().filter(|row| row.name.contains(only)).collect();
    if chosen.is_empty() {
        let names: Vec<&str> = rows().map(|row| row.name).collect();
        bail!("no row's name contains {only:?}; the rows are:\n  {}", names.join("\n  "));
    }
    Ok(chosen.iter().flat_map(|row| row.floors.iter().copied().chain([row.name])).collect())
}

/// What was measured of each row, round by round.
type Samples = BTreeMap<&'static str, Vec<f64>>;

/// Measures all cases, `rounds` times in turn. `tell` hears which case begins.
///
/// # Errors
/// No row has the wanted name. What fails while it is measured stands in the sheet.
pub fn measure(mut cases: Vec<Case>, wishes: &Wishes, mut tell: impl FnMut(usize, &str)) -> Result<Sheet> {
    let wanted = wanted(&cases, wishes.only.as_deref())?;
    cases.retain(|case| case.rows.iter().any(|row| wanted.contains(&row.name)));
    let mut sheet = Sheet::default();
    let mut samples = Samples::new();
    for round in 0..wishes.rounds {
        for group in cases.chunk_by_mut(|case, next| case.is_beside(next)) {
            let is_over = |row: &Row| sheet.skipped.iter().chain(&sheet.failed).any(|missing| missing.name == row.name);
            let is_due = |case: &&mut Case| (round == 0 || !case.is_once) && !case.rows.iter().any(is_over);
            let due: Vec<&mut Case> = group.iter_mut().filter(is_due).collect();
            for case in &due {
                tell(round + 1, case.rows.first().map_or("", |row| row.name));
            }
            for (rows, measured) in measure_group(due) {
                take(rows, measured, &mut samples, &mut sheet);
            }
        }
    }
    let rows = cases.iter().flat_map(|case| &case.rows).filter(|row| wanted.contains(&row.name));
    sheet.rows = rows.filter_map(|row| figure(row, &samples)).collect();
    Ok(sheet)
}

/// Measures one case, or several side by side.
fn measure_group<'a>(cases: Vec<&'a mut Case>) -> Vec<(&'a [Row], Result<Measured>)> {
    enum Run<'a> {
        Over(Result<Measured>),
        UnderWay(thread::ScopedJoinHandle<'a, Result<Measured>>),
    }
    thread::scope(|scope| {
        let begin = |case: &'a mut Case| match &mut case.work {
            Work::Alone(measure) => (&case.rows[..], Run::Over(measure())),
            Work::Beside(measure) => (&case.rows[..], Run::UnderWay(scope.spawn(measure))),
        };
        let runs: Vec<(&[Row], Run<'_>)> = cases.into_iter().map(begin).collect();
        let end = |run| match run {
            Run::Over(measured) => measured,
            Run::UnderWay(run) => run.join().unwrap_or_else(|_| Err(anyhow!("its thread panicked; the reason stands above"))),
        };
        runs.into_iter().map(|(rows, run)| (rows, end(run))).collect()
    })
}

/// Takes in what the measurement of a case gave.
fn take(rows: &[Row], measured: Result<Measured>, samples: &mut Samples, sheet: &mut Sheet) {
    let missing = |why: String| rows.iter().map(move |row| Missing { name: row.name, why: why.clone() });
    match measured {
        Ok(Measured::Values(values)) if values.len() == rows.len() => {
            for (row, value) in rows.iter().zip(values) {
                samples.entry(row.name).or_default().push(value);
            }
        }
        Ok(Measured::Values(values)) => sheet.failed.extend(missing(format!("{} values for {} rows", values.len(), rows.len()))),
        Ok(Measured::Skipped(why)) => sheet.skipped.extend(missing(why)),
        Err(error) => sheet.failed.extend(missing(format!("{error:#}"))),
    }
}

fn figure(row: &Row, samples: &Samples) -> Option<Figure> {
    let values = samples.get(row.name)?;
    let value = median(values)?;
    let floors: Option<Vec<&Vec<f64>>> = row.floors.iter().map(|name| samples.get(name)).collect();
    let floors: Vec<f64> = match floors {
        Some(parts) if !parts.is_empty() => {
            (0..values.len()).map_while(|round| parts.iter().map(|part| part.get(round).or(part.last())).sum::<Option<f64>>()).collect()
        }
        _ => Vec::new(),
    };
    let ratios: Vec<f64> = values.iter().zip(&floors).map(|(value, floor)| value / floor).collect();
    let (floor, ratio) = (median(&floors), median(&ratios));
    let (reach, met) = match row.reach {
        Reach::None => (None, None),
        // Without its floor a ratio is not known, and whether it was met neither.
        Reach::Ratio(most) => (Some(most), ratio.map(|ratio| ratio <= most)),
        Reach::Above(most) => {
            let above: Vec<f64> = values.iter().zip(&floors).map(|(value, floor)| value - floor).collect();
            (floor.map(|floor| (floor + most) / floor), median(&above).map(|above| above <= most))
        }
        Reach::Value(most) => (Some(floor.map_or(most, |floor| most / floor)), Some(value <= most)),
    };
    Some(Figure { name: row.name, value, unit: row.unit, floor, ratio, reach, met })
}

fn short(number: f64) -> String {
    match number.abs() {
        size if size >= 100.0 => format!("{number:.0}"),
        size if size >= 10.0 => format!("{number:.1}"),
        _ => format!("{number:.2}"),
    }
}

impl Sheet {
    /// As one JSON object.
    #[must_use]
    pub fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// For people or for programs.
    #[must_use]
    pub fn text(&self, is_json: bool) -> String {
        if is_json { self.json() } else { self.table().trim_end().to_owned() }
    }

    /// As a table for people.
    #[must_use]
    pub fn table(&self) -> String {
        let width = self.rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        let mut text = format!("{:<width$}  {:>12}  {:>10}  {:>7}  {:>7}  met\n", "work", "value", "floor", "ratio", "reach");
        for row in &self.rows {
            let optional = |number: Option<f64>| number.map_or_else(String::new, short);
            let met = row.met.map_or("", |is_met| if is_met { "yes" } else { "NO" });
            let value = format!("{} {}", short(row.value), row.unit);
            let (floor, ratio, reach) = (optional(row.floor), optional(row.ratio), optional(row.reach));
            let _ = writeln!(text, "{:<width$}  {value:>12}  {floor:>10}  {ratio:>7}  {reach:>7}  {met}", row.name);
        }
        for (word, list) in [("skipped", &self.skipped), ("failed", &self.failed)] {
            // Rows of one case have one reason.
            for same in list.chunk_by(|one, next| one.why == next.why) {
                let names: Vec<&str> = same.iter().map(|missing| missing.name).collect();
                let _ = writeln!(text, "{word}: {}: {}", names.join("; "), same.first().map_or("", |missing| &missing.why));
            }
        }
        text
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;
    use std::{
        sync::mpsc::{Receiver, Sender, channel},
        time::Duration,
    };

    fn series(row: Row, values: &'static [f64]) -> Case {
        let mut values = values.iter();
        Case::one(row, move || Ok(*values.next().unwrap()))
    }

    fn run(cases: Vec<Case>, rounds: usize) -> Sheet {
        measure(cases, &Wishes { rounds, only: None }, |_, _| {}).unwrap()
    }

    #[test]
    fn a_ratio_is_the_median_of_the_rounds_ratios() {
        let floor = series(Row::new("floor", "ns"), &[10.0, 20.0, 40.0]);
        let work = series(Row::new("work", "ns").over(&["floor"]).reach(Reach::Ratio(1.5)), &[15.0, 28.0, 80.0]);
        let sheet = run(vec![floor, work], 3);
        let figure = &sheet.rows[1];
        // Not 28 / 20: the ratios are 1.5, 1.4 and 2.
        assert_eq!((figure.value, figure.floor, figure.ratio, figure.met), (28.0, Some(20.0), Some(1.5), Some(true)));
    }

    #[test]
    fn several_floors_add_up_and_an_absolute_goal_becomes_a_ratio() {
        let floors = [series(Row::new("one", "ns"), &[10.0]), series(Row::new("two", "ns"), &[30.0])];
        let work = series(Row::new("work", "ns").over(&["one", "two"]).reach(Reach::Value(60.0)), &[80.0]);
        let sheet = run(floors.into_iter().chain([work]).collect(), 1);
        let figure = &sheet.rows[2];
        assert_eq!((figure.floor, figure.ratio, figure.reach, figure.met), (Some(40.0), Some(2.0), Some(1.5), Some(false)));
    }

    #[test]
    fn a_goal_above_the_floor_moves_with_it() {
        let floor = || series(Row::new("floor", "ms"), &[1.0, 2.0]);
        let work = |most| series(Row::new("work", "ms").over(&["floor"]).reach(Reach::Above(most)), &[4.0, 5.0]);
        let figure = |most| run(vec![floor(), work(most)], 2).rows[1].clone();
        assert_eq!((figure(3.0).reach, figure(3.0).met, figure(2.9).met), (Some(4.0), Some(true), Some(false)));
    }

    #[test]
    fn what_cannot_be_measured_is_no_figure() {
        let floor = Case::new(vec![Row::new("floor", "ns")], || Ok(Measured::Skipped("not root".into())));
        let work = series(Row::new("work", "ns").over(&["floor"]).reach(Reach::Ratio(1.5)), &[15.0, 16.0]);
        let broken = Case::one(Row::new("broken", "ns"), || bail!("no such thing"));
        let sheet = run(vec![floor, work, broken], 2);
        assert_eq!(sheet.rows.len(), 1);
        assert_eq!((sheet.rows[0].ratio, sheet.rows[0].met), (None, None));
        assert_eq!(sheet.skipped, [Missing { name: "floor", why: "not root".into() }]);
        assert_eq!(sheet.failed, [Missing { name: "broken", why: "no such thing".into() }]);
        assert!(sheet.table().contains("skipped: floor: not root"));
    }

    #[test]
    fn only_takes_the_floors_along() {
        let cases = || {
            vec![series(Row::new("a", "ns"), &[1.0]), series(Row::new("b", "ns").over(&["a"]), &[2.0]), series(Row::new("c", "ns"), &[])]
        };
        let wishes = Wishes { rounds: 1, only: Some("b".into()) };
        let sheet = measure(cases(), &wishes, |_, _| {}).unwrap();
        assert_eq!(sheet.rows.iter().map(|row| row.name).collect::<Vec<_>>(), ["a", "b"]);
        assert!(measure(cases(), &Wishes { only: Some("x".into()), ..wishes }, |_, _| {}).is_err());
    }

    #[test]
    fn the_object_has_the_shape_that_all_benchmarks_share() {
        let sheet = run(vec![series(Row::new("a", "ns"), &[1.5])], 1);
        let row = r#"{"name":"a","value":1.5,"unit":"ns","floor":null,"ratio":null,"reach":null,"met":null}"#;
        assert_eq!(sheet.json(), format!(r#"{{"rows":[{row}],"skipped":[],"failed":[]}}"#));
    }

    #[test]
    fn neighbours_run_at_one_time() {
        // Each hears the other before it ends.
        let ((to_a, at_a), (to_b, at_b)) = (channel(), channel());
        let case = |name, value, to: Sender<()>, at: Receiver<()>| {
            Case::beside(vec![Row::new(name, "s")], move || {
                to.send(())?;
                at.recv_timeout(Duration::from_secs(10))?;
                Ok(Measured::Values(vec![value]))
            })
        };
        let broken = Case::beside(vec![Row::new("broken", "s")], || panic!("as it should"));
        let sheet =
            run(vec![case("a", 1.0, to_b, at_a), broken, case("b", 2.0, to_a, at_b), series(Row::new("alone", "s"), &[3.0, 3.0])], 2);
        assert_eq!(sheet.rows.iter().map(|row| row.value).collect::<Vec<_>>(), [1.0, 2.0, 3.0]);
        assert_eq!(sheet.failed.iter().map(|missing| missing.name).collect::<Vec<_>>(), ["broken"]);
    }

    #[test]
    fn a_case_measured_once_is_compared_with_the_floors_of_its_round() {
        let floor = series(Row::new("floor", "B"), &[1.0, 9.0, 9.0]);
        let work = series(Row::new("work", "B").over(&["floor"]), &[2.0]).once();
        assert_eq!(run(vec![floor, work], 3).rows[1].ratio, Some(2.0));
    }
}
