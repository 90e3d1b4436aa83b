//! One figure, and how all of them are shown.

use serde::Serialize;

/// A measured value beside its floor.
#[derive(Debug, Clone, Serialize)]
pub struct Figure {
    /// What it is called.
    pub name: String,
    /// What was measured.
    pub value: f64,
    /// Its unit, and that of the floor.
    pub unit: &'static str,
    /// The same work with nothing around it; none where there is none.
    pub floor: Option<f64>,
    /// Value to floor.
    pub ratio: Option<f64>,
    /// What it should be.
    #[serde(skip)]
    pub aim: Aim,
    /// What exactly was measured, and against what.
    #[serde(skip)]
    pub meaning: String,
}

/// What a figure should be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Aim {
    /// It is shown for its own sake.
    None,
    /// At most so many times the floor.
    Ratio(f64),
    /// At most so much.
    Value(f64),
}

impl Figure {
    /// A value with its floor. A floor of nothing has no ratio.
    pub fn new(name: impl Into<String>, value: f64, unit: &'static str, floor: Option<f64>) -> Self {
        let ratio = floor.filter(|floor| *floor > 0.0).map(|floor| value / floor);
        Self { name: name.into(), value, unit, floor, ratio, aim: Aim::None, meaning: String::new() }
    }

    /// With what it should be.
    #[must_use]
    pub const fn aim(mut self, aim: Aim) -> Self {
        self.aim = aim;
        self
    }

    /// With what it means, in words.
    #[must_use]
    pub fn meaning(mut self, words: impl Into<String>) -> Self {
        self.meaning = words.into();
        self
    }

    /// Whether the aim is met; none where there is none.
    pub fn is_met(&self) -> Option<bool> {
        match self.aim {
            Aim::None => None,
            Aim::Ratio(most) => self.ratio.map(|ratio| ratio <= most),
            Aim::Value(most) => Some(self.value <= most),
        }
    }

    /// One row of the table.
    pub fn row(&self) -> String {
        let unit = self.unit;
        let floor = self.floor.map_or_else(|| "-".to_owned(), |floor| format!("{} {unit}", short(floor)));
        let ratio = self.ratio.map_or_else(|| "-".to_owned(), |ratio| format!("{ratio:.2}x"));
        let aim = match self.aim {
            Aim::None => "-".to_owned(),
            Aim::Ratio(most) => format!("{most}x"),
            Aim::Value(most) => format!("{} {unit}", short(most)),
        };
        let verdict = match self.is_met() {
            None => "",
            Some(true) => "met",
            Some(false) => "MISSED",
        };
        let value = format!("{} {unit}", short(self.value));
        format!("{:<34} {value:>14} {floor:>14} {ratio:>8} {aim:>9}  {verdict}", self.name)
    }
}

/// The table's head.
pub fn head() -> String {
    format!("{:<34} {:>14} {:>14} {:>8} {:>9}", "figure", "value", "floor", "ratio", "aim")
}

/// Three digits that mean something.
fn short(value: f64) -> String {
    match value.abs() {
        100.0.. => format!("{value:.0}"),
        10.0.. => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}
