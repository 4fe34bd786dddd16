//! What a recovery must know and only the hold can tell: values from before the freeze, such as settings that it changes.
//!
//! They are EVIDENCE of the open text. What the hold told by READY is in the journal before FREEZE is sent
//! (docs/design/freeze.md §5), so that nothing is ever changed whose old value is nowhere.

use std::collections::BTreeMap;

use super::Recover;
use super::placeholder;

/// Longest value: settings and positions are short, and what is longer is no argument.
const MAX_VALUE: usize = 64;

/// Whether a text that a server printed is fit to become part of an argument: letters, digits and `_.:-`, at most 64, and
/// it begins with a letter or digit. It can be no option, no second word and no second statement.
pub fn is_plain(text: &str) -> bool {
    let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | ':' | '-');
    text.len() <= MAX_VALUE
        && text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(known)
}

/// Why a recovery could not know what it needs, by what the hold told so far; `None`: it knows all.
pub fn gap(needs: &[String], facts: &BTreeMap<String, String>) -> Option<String> {
    needs.iter().find_map(|name| match facts.get(name) {
        None => Some(format!("it did not tell {name}, without which its recovery could undo nothing")),
        Some(value) if !is_plain(value) => Some(format!(
            "it told a {name} that is no plain value (letters, digits and _.:-, at most {MAX_VALUE}), so that its recovery \
             cannot use it"
        )),
        Some(_) => None,
    })
}

impl Recover {
    /// The same with what the hold told, where `{{name}}` stands for a name of `needs`.
    ///
    /// # Errors
    /// Which value is missing or is none.
    pub fn filled(&self, facts: &BTreeMap<String, String>) -> Result<Self, String> {
        if let Some(why) = gap(&self.needs, facts) {
            return Err(why);
        }
        let value = |name: &str| {
            self.needs.iter().any(|needed| needed == name).then(|| facts.get(name).cloned()).flatten()
        };
        let fill =
            |argv: &[String]| argv.iter().map(|word| placeholder::replace(word, value)).collect::<Vec<_>>();
        Ok(Self { command: fill(&self.command), probe: fill(&self.probe), needs: Vec::new() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
mod tests {
    use super::*;

    fn recover() -> Recover {
        Recover {
            command: vec!["client".into(), "SET x={{old_x}}, y={{other}}".into()],
            probe: vec!["client".into(), "{{old_x}}".into()],
            needs: vec!["old_x".into()],
        }
    }

    fn told(value: &str) -> BTreeMap<String, String> {
        [("old_x".to_owned(), value.to_owned()), ("other".to_owned(), "1".to_owned())].into()
    }

    #[test]
    fn a_recovery_gets_what_it_needs_and_nothing_else() {
        let filled = recover().filled(&told("90.000000")).unwrap();
        assert_eq!(filled.command, ["client", "SET x=90.000000, y={{other}}"]);
        assert_eq!(filled.probe, ["client", "90.000000"]);
    }

    #[test]
    fn without_a_value_nothing_is_run() {
        assert!(recover().filled(&BTreeMap::new()).unwrap_err().contains("old_x"));
        assert_eq!(
            Recover { needs: Vec::new(), ..recover() }.filled(&BTreeMap::new()).unwrap().command,
            recover().command
        );
    }

    #[test]
    fn a_value_that_could_be_more_than_a_value_is_none() {
        let long = "9".repeat(65);
        for value in
            ["", "-1", "1;DROP TABLE t", "1 2", "$(reboot)", "'", "{{n}}", "é", "1\n2", long.as_str()]
        {
            let why = recover().filled(&told(value)).unwrap_err();
            assert!(why.contains("old_x") && (value.is_empty() || !why.contains(value)), "{why}");
        }
    }
}
