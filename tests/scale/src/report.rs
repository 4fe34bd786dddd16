//! The table that docs/figures.md has.

use std::fmt::Write as _;

/// Figures by row and population.
#[derive(Clone, Debug, Default)]
pub struct Report {
    populations: Vec<String>,
    rows: Vec<(String, Vec<(String, String)>)>,
    notes: Vec<String>,
}

impl Report {
    /// Notes a figure, and prints it at once: a bench that is ended by hand has told what it knows.
    pub fn put(&mut self, population: &str, row: &str, value: impl Into<String>) {
        let value = value.into();
        println!("{population:>7}  {row}: {value}");
        if !self.populations.iter().any(|known| known == population) {
            self.populations.push(population.to_owned());
        }
        let value = (population.to_owned(), value);
        match self.rows.iter_mut().find(|(name, _)| name == row) {
            Some((_, values)) => values.push(value),
            None => self.rows.push((row.to_owned(), vec![value])),
        }
    }

    /// Notes a sentence.
    pub fn note(&mut self, text: String) {
        println!("         {text}");
        self.notes.push(text);
    }

    /// The table.
    pub fn table(&self) -> String {
        let mut text = "\n| policies |".to_owned();
        // Writing to a String cannot fail.
        for population in &self.populations {
            let _ = write!(text, " {population} |");
        }
        text.push_str("\n|---|");
        self.populations.iter().for_each(|_| text.push_str("---|"));
        for (row, values) in &self.rows {
            let _ = write!(text, "\n| {row} |");
            for population in &self.populations {
                let value =
                    values.iter().find(|(of, _)| of == population).map_or("–", |(_, value)| value.as_str());
                let _ = write!(text, " {value} |");
            }
        }
        text.push('\n');
        text
    }

    /// The sentences.
    pub fn notes(&self) -> String {
        self.notes.iter().map(|note| format!("- {note}\n")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_population_without_a_figure_has_a_dash() {
        let mut report = Report::default();
        report.put("10", "ready", "1 s");
        report.put("20", "herd", "2 s");
        let table = "\n| policies | 10 | 20 |\n|---|---|---|\n| ready | 1 s | – |\n| herd | – | 2 s |\n";
        assert_eq!(report.table(), table);
    }
}
