//! Reads a text as its client reads it, to know whether it ends in code or in a literal or comment.
//!
//! Where that reading is not certain (a backslash before a quote, a here document, a regular expression over two lines, what
//! servers of one language read differently) the answer is no.

use super::language::Language;

/// Whether a text ends outside of quotes, comments and everything that is not certain.
pub(super) fn is_code(language: Language, text: &str) -> bool {
    let mut rest = Rest { chars: text.chars().collect(), at: 0 };
    match language {
        Language::Sql | Language::Mysql | Language::Postgresql => rest.sql(language),
        Language::Javascript => rest.javascript(),
        Language::Shell => rest.shell(),
        Language::Uri => true,
    }
}

/// A text that is being read. The readers answer whether it ended in code.
struct Rest {
    chars: Vec<char>,
    at: usize,
}

impl Rest {
    fn peek(&self, ahead: usize) -> char {
        self.chars.get(self.at + ahead).copied().unwrap_or('\0')
    }

    fn next(&mut self) -> Option<char> {
        let one = self.chars.get(self.at).copied();
        self.at += 1;
        one
    }

    /// Skips until after `end`; `false`: it never comes.
    fn skip_past(&mut self, end: &str) -> bool {
        let end: Vec<char> = end.chars().collect();
        let found = (self.at..self.chars.len()).find(|at| self.chars[*at..].starts_with(&end));
        self.at = found.map_or(self.chars.len(), |found| found + end.len());
        found.is_some()
    }

    /// Skips a literal to its closing quote. A doubled quote closes and opens it. `false`: it is open, or nobody can say.
    fn skip_quoted(&mut self, quote: char, backslash_before_quote: bool) -> bool {
        while let Some(one) = self.next() {
            if one == quote {
                return true;
            }
            if one == '\\' {
                // Whether it is escaped depends on the server's mode.
                if self.peek(0) == quote && !backslash_before_quote {
                    return false;
                }
                self.at += 1;
            }
        }
        false
    }

    fn sql(&mut self, language: Language) -> bool {
        while let Some(one) = self.next() {
            let sound = match one {
                '\'' | '"' => self.skip_quoted(one, false),
                '`' if language == Language::Mysql => self.skip_past("`"),
                '`' | '\\' => false,
                '-' if self.peek(0) == '-' => match language {
                    Language::Mysql if !self.peek(1).is_whitespace() => true,
                    Language::Postgresql | Language::Mysql => self.skip_past("\n"),
                    _ => self.peek(1).is_whitespace() && self.skip_past("\n"),
                },
                '#' => match language {
                    Language::Mysql => self.skip_past("\n"),
                    Language::Postgresql => true,
                    _ => false,
                },
                '/' if self.peek(0) == '*' => self.skip_comment(),
                '$' => match language {
                    Language::Postgresql => self.skip_dollar_quoted(),
                    Language::Mysql => true,
                    _ => false,
                },
                _ => true,
            };
            if !sound {
                return false;
            }
        }
        true
    }

    /// Comments nest in some servers and not in others.
    fn skip_comment(&mut self) -> bool {
        self.at += 1;
        let begun = self.at;
        if !self.skip_past("*/") {
            return false;
        }
        let inside: String = self.chars[begun..self.at].iter().collect();
        !inside.contains("/*") && !inside.starts_with('!')
    }

    fn skip_dollar_quoted(&mut self) -> bool {
        let begun = self.at;
        while self.peek(0).is_alphanumeric() || self.peek(0) == '_' {
            self.at += 1;
        }
        if self.peek(0) != '$' {
            return true;
        }
        let tag: String = self.chars[begun..self.at].iter().collect();
        self.at += 1;
        self.skip_past(&format!("${tag}$"))
    }

    fn javascript(&mut self) -> bool {
        // What stands before a slash tells a division from a regular expression.
        let mut last = ';';
        while let Some(one) = self.next() {
            let sound = match one {
                '\'' | '"' => self.skip_quoted(one, true),
                '`' => self.skip_template(),
                '/' if self.peek(0) == '/' => self.skip_past("\n"),
                '/' if self.peek(0) == '*' => self.skip_past("*/"),
                '/' if "=(,:[!&|?{};+-*%<>~^\n".contains(last) => self.skip_regular_expression(),
                // After a word it is a division, or a regular expression behind return, typeof and their kind.
                '/' => last.is_ascii_digit() || ")]".contains(last),
                '<' => self.peek(0) != '!',
                _ => true,
            };
            if !sound {
                return false;
            }
            if !one.is_whitespace() {
                last = one;
            }
        }
        true
    }

    fn skip_template(&mut self) -> bool {
        let begun = self.at;
        let closed = self.skip_quoted('`', true);
        let inside: String = self.chars[begun..self.at.min(self.chars.len())].iter().collect();
        closed && !inside.contains("${")
    }

    fn skip_regular_expression(&mut self) -> bool {
        let mut class = false;
        while let Some(one) = self.next() {
            match one {
                '\n' => return false,
                '\\' => self.at += 1,
                '[' => class = true,
                ']' => class = false,
                '/' if !class => return true,
                _ => {}
            }
        }
        false
    }

    fn shell(&mut self) -> bool {
        // A word begins here, so that # begins a comment.
        let mut begins = true;
        while let Some(one) = self.next() {
            let sound = match one {
                '\'' => self.skip_past("'"),
                '"' => {
                    let begun = self.at;
                    let closed = self.skip_quoted('"', true);
                    let inside: String = self.chars[begun..self.at.min(self.chars.len())].iter().collect();
                    closed && !inside.contains("$(") && !inside.contains("${") && !inside.contains('`')
                }
                '\\' => {
                    self.at += 1;
                    true
                }
                '#' if begins => self.skip_past("\n"),
                '`' => false,
                '$' => !"({'\"".contains(self.peek(0)),
                '<' => self.peek(0) != '<',
                '(' => self.peek(0) != '(',
                '[' => self.peek(0) != '[',
                _ => true,
            };
            if !sound {
                return false;
            }
            begins = one.is_whitespace() || ";&|(".contains(one) || one == '#';
        }
        true
    }
}
