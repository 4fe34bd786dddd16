//! What holds of every server whose writes are suspended for a snapshot, whoever suspends: a suspension of somebody else is left
//! alone, `recover` undoes one, and no answer claims one that is not there.

use std::time::Duration;

use stillpoint_api::template::Recipe;

use crate::Outcome;
use crate::checks::Checked;
use crate::container::Container;
use crate::held::Held;

/// How somebody else suspends a server and resumes it, and what a session says that has not suspended.
pub struct Suspension<'a, S> {
    /// Where the server is.
    pub container: &'a Container,
    /// What is judged.
    pub recipe: &'a Recipe,
    /// Suspends; for as long as the value lives.
    pub begin: &'a dyn Fn() -> Outcome<S>,
    /// Resumes.
    pub end: &'a dyn Fn() -> Outcome<()>,
    /// Words of the refusal to thaw what is not suspended.
    pub not_suspended: &'a str,
}

impl<S> Suspension<'_, S> {
    /// The checks, in the order of the table.
    pub fn checks(&self) -> Vec<Checked> {
        vec![
            ("foreign suspension".into(), self.foreign()),
            ("recover".into(), self.recovered()),
            ("thaw without a suspension".into(), self.unlocked()),
            ("resumed by somebody else".into(), self.resumed()),
        ]
    }

    fn suspended(&self) -> Outcome<bool> {
        let recover = self.recipe.recover.as_ref().ok_or("there is no recover")?;
        Ok(self.container.run(&recover.probe)?.code == Some(0))
    }

    fn foreign(&self) -> Outcome<String> {
        let session = (self.begin)()?;
        let opened = Held::open(self.container, self.recipe).map(|_| ());
        let still = self.suspended()?;
        (self.end)()?;
        drop(session);
        match opened {
            Err(why) if why.contains("foreign_freeze") && still => {
                Ok("left alone, and left suspended".to_owned())
            }
            other => Err(format!("{other:?}, still suspended: {still}")),
        }
    }

    fn recovered(&self) -> Outcome<String> {
        let recover = self.recipe.recover.as_ref().ok_or("there is no recover")?;
        let session = (self.begin)()?;
        let before = self.suspended()?;
        let undone = self.container.run(&recover.command)?;
        let after = self.suspended()?;
        let again = self.container.run(&recover.command)?;
        drop(session);
        if before && undone.code == Some(0) && !after && again.code == Some(0) {
            return Ok("resumed from outside; a second time does no harm".to_owned());
        }
        Err(format!("{before} {undone:?} {after} {again:?}"))
    }

    fn unlocked(&self) -> Outcome<String> {
        match Held::open(self.container, self.recipe)?.thaw_alone() {
            Err(why) if why.contains(self.not_suspended) => {
                Ok("THAWED is not printed without the suspension".to_owned())
            }
            other => Err(format!("it should say {}: {other:?}", self.not_suspended)),
        }
    }

    fn resumed(&self) -> Outcome<String> {
        let mut held = Held::open(self.container, self.recipe)?;
        held.freeze(Duration::from_secs(60))?;
        (self.end)()?;
        if held.beat_unanswered(Duration::from_secs(5))? {
            return Ok("no HELD once somebody else has resumed".to_owned());
        }
        Err("HELD of a server that is not suspended".to_owned())
    }
}
