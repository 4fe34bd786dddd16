//! Series of figures as JSON and as a table.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde_json::{Value, json};

use crate::measure::Figures;
use crate::scenario::Scenario;

/// Figures of every run of a scenario.
pub struct Report {
    /// Which.
    pub scenario: Scenario,
    /// Milliseconds by name.
    pub series: BTreeMap<&'static str, Vec<f64>>,
    /// Runs that were no proven point, in words.
    pub wrong: Vec<String>,
}

impl Report {
    /// An empty one.
    pub const fn of(scenario: Scenario) -> Self {
        Self { scenario, series: BTreeMap::new(), wrong: Vec::new() }
    }

    /// Adds a run.
    pub fn add(&mut self, figures: Figures) {
        for (name, value) in figures {
            self.series.entry(name).or_default().push(value);
        }
    }

    fn at(&self, name: &str, part: f64) -> f64 {
        let mut sorted = self.series.get(name).cloned().unwrap_or_default();
        sorted.sort_by(f64::total_cmp);
        let index = ((sorted.len() as f64 - 1.0).max(0.0) * part).round();
        // Never negative, never beyond the last: `part` is in [0, 1].
        sorted.get(index as usize).copied().unwrap_or_default()
    }

    /// Lines of a table: name, runs, p50, p99, max.
    pub fn table(&self) -> String {
        let s = self.scenario;
        let mut text = format!(
            "\n{}: {} pod(s) x {} volume(s), {}{}\n\n| ms | runs | p50 | p99 | max |\n|---|---|---|---|---|\n",
            s.name,
            s.pods,
            s.volumes,
            if s.raised { "QPS 100" } else { "default QPS 5" },
            if s.group { ", one VolumeGroupSnapshot" } else { "" }
        );
        for (name, values) in &self.series {
            // Writing to a String cannot fail.
            let _ = writeln!(
                text,
                "| {name} | {} | {:.1} | {:.1} | {:.1} |",
                values.len(),
                self.at(name, 0.5),
                self.at(name, 0.99),
                self.at(name, 1.0)
            );
        }
        for words in &self.wrong {
            let _ = writeln!(text, "not counted: {words}");
        }
        text
    }

    /// The same for machines, with every value.
    pub fn json(&self) -> Value {
        let series: BTreeMap<&str, Value> = self
            .series
            .iter()
            .map(|(name, values)| {
                let figures = json!({"p50": self.at(name, 0.5), "p99": self.at(name, 0.99), "max": self.at(name, 1.0), "values": values});
                (*name, figures)
            })
            .collect();
        json!({
            "scenario": self.scenario.name, "pods": self.scenario.pods, "volumes": self.scenario.volumes,
            "raisedQps": self.scenario.raised, "group": self.scenario.group, "unit": "ms",
            "series": series, "wrong": self.wrong,
        })
    }
}
