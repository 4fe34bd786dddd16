//! Embeds the shipped template library: every YAML file of `config/templates`, by name.

use std::fmt::Write as _;
use std::path::Path;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    let manifest = env::var("CARGO_MANIFEST_DIR").map_err(io::Error::other)?;
    let library = Path::new(&manifest).join("../../config/templates");
    println!("cargo::rerun-if-changed={}", library.display());
    let mut files = Vec::new();
    if library.is_dir() {
        for entry in fs::read_dir(&library)? {
            let path = entry?.path();
            let is_template = path.file_name().is_some_and(|name| name != "kustomization.yaml");
            if is_template && path.extension().is_some_and(|extension| extension == "yaml") {
                files.push(path);
            }
        }
    }
    files.sort();
    let mut code = String::from("pub(crate) const LIBRARY: &[(&str, &str)] = &[\n");
    for path in files {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        writeln!(code, "    ({name:?}, include_str!({:?})),", path.canonicalize()?)
            .map_err(io::Error::other)?;
    }
    code.push_str("];\n");
    let out = env::var("OUT_DIR").map_err(io::Error::other)?;
    fs::write(Path::new(&out).join("library.rs"), code)
}
