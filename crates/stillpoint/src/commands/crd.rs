//! `stillpoint crd`: the definitions of this very binary, ready for `kubectl apply`.

use stillpoint_api::crd;

use crate::failure::{Exit, Failure};
use crate::output;

/// Prints all definitions as one YAML stream.
///
/// # Errors
/// A definition cannot be rendered or printed.
pub fn run() -> Result<Exit, Failure> {
    let mut text = String::new();
    for definition in crd::all() {
        let yaml = crd::yaml(&definition)
            .map_err(|error| Failure::new("cannot render the definitions", error.to_string(), ""))?;
        text.push_str("---\n");
        text.push_str(&yaml);
    }
    output::print(&text)?;
    Ok(Exit::Success)
}
