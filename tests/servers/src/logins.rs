//! How a template's client gets its password: by variable, by the file that a variable names, by a file of its own; and what is
//! said when it is wrong.

use std::collections::BTreeMap;

use stillpoint_api::template::Recipe;
use stillpoint_executor::client_words::{Said, explain};
use stillpoint_executor::run::Reason;

use crate::checks::Checked;
use crate::container::{Container, Done};
use crate::{Outcome, library};

/// An account with a password, and the ways in which a container may have that.
pub struct Login<'a> {
    /// The template.
    pub template: &'static str,
    /// Its parameters, the account among them.
    pub parameters: Vec<(&'static str, String)>,
    /// Variables that the usual images have it in.
    pub variables: &'a [&'static str],
    /// The password.
    pub password: &'a str,
}

/// What the words of a failed command mean to the executor.
pub fn means(recipe: &Recipe, done: &Done) -> (Reason, String) {
    let said = Said { code: done.code, stderr: &done.stderr, messages: &recipe.messages };
    let why = explain("pod/container", "it failed", said);
    (why.reason, why.message)
}

/// Logs in by each way, and by a wrong password and none.
pub fn logins(container: &Container, login: &Login<'_>) -> Vec<Checked> {
    let file = format!("/srv/stillpoint-{}.password", login.template);
    let outside = container.outside(&file);
    let checked = (|| {
        std::fs::write(&outside, login.password).map_err(|error| error.to_string())?;
        let mut ways: Vec<String> = Vec::new();
        for variable in login.variables {
            good(container, login, &[], &[(variable, login.password)])?;
            good(container, login, &[], &[(&format!("{variable}_FILE"), &file)])?;
            ways.extend([(*variable).to_owned(), format!("{variable}_FILE")]);
        }
        good(container, login, &[("passwordFile", file.clone())], &[])?;
        ways.push("passwordFile".into());
        Ok(ways.join(", "))
    })();
    let refused = |name: &str, env: &[(&str, &str)], extra: &[(&'static str, String)], expected: Reason| {
        let checked = (|| {
            let (recipe, done) = asked(container, login, extra, env)?;
            let (reason, message) = means(&recipe, &done);
            if done.code == Some(0) || reason != expected || message.contains("wrong-one") {
                return Err(format!("{reason}, not {expected}: {done:?}"));
            }
            Ok(format!("{reason}: {message}"))
        })();
        (name.to_owned(), checked)
    };
    let variable = login.variables.first().copied().unwrap_or_default();
    let found = vec![
        ("password by".to_owned(), checked),
        refused("password wrong", &[(variable, "wrong-one")], &[], Reason::AuthenticationFailed),
        refused("password missing", &[], &[], Reason::AuthenticationFailed),
        refused(
            "password file missing",
            &[],
            &[("passwordFile", "/srv/none".into())],
            Reason::AuthenticationFailed,
        ),
    ];
    let _ = std::fs::remove_file(&outside);
    found
}

fn good(
    container: &Container,
    login: &Login<'_>,
    extra: &[(&'static str, String)],
    env: &[(&str, &str)],
) -> Outcome<()> {
    let (_, done) = asked(container, login, extra, env)?;
    if done.code == Some(0) && done.stdout.trim() == "primary" {
        return Ok(());
    }
    Err(format!(
        "by {:?} {:?}: {done:?}",
        env.first().map(|(name, _)| *name),
        extra.first().map(|(name, _)| *name)
    ))
}

/// Asks for the role.
fn asked(
    container: &Container,
    login: &Login<'_>,
    extra: &[(&'static str, String)],
    env: &[(&str, &str)],
) -> Outcome<(Recipe, Done)> {
    let all: BTreeMap<&'static str, String> = login.parameters.iter().chain(extra).cloned().collect();
    let all: Vec<(&'static str, String)> = all.into_iter().collect();
    let recipe = library::recipe(login.template, &all)?;
    let mut container = container.clone();
    container.env.retain(|(name, _)| !name.contains("PASSWORD"));
    container.env.extend(env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
    let rule = recipe.target.as_ref().and_then(|target| target.role.as_ref()).ok_or("no role rule")?;
    let done = container.run(&rule.command)?;
    Ok((recipe, done))
}
