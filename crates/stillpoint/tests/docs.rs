//! What the documents say is true of this tree: their YAML passes the linter, their commands and make targets exist,
//! and their relative links lead to a file and a heading.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use stillpoint_executor::storage::{StorageTable, TrustFile};

/// Folders with documents, beside the root itself.
const FOLDERS: [&str; 9] = [
    "docs",
    "docs/design",
    "docs/runbooks",
    "docs/templates",
    "tests/servers",
    "dashboards",
    "crates/simcluster",
    "tests/cluster",
    "tests/e2e",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// One Markdown file.
struct Document {
    path: PathBuf,
    text: String,
}

impl Document {
    fn name(&self) -> String {
        self.path.strip_prefix(root()).unwrap().display().to_string()
    }

    /// Fenced blocks: the word after the fence, and the content.
    fn blocks(&self) -> Vec<(String, String)> {
        let mut blocks: Vec<(String, String)> = Vec::new();
        let mut open = false;
        for line in self.text.lines() {
            if let Some(word) = line.trim_start().strip_prefix("```") {
                if !open {
                    blocks.push((word.trim().to_owned(), String::new()));
                }
                open = !open;
            } else if open {
                let (_, content) = blocks.last_mut().unwrap();
                content.push_str(line);
                content.push('\n');
            }
        }
        assert!(!open, "{}: a fence is never closed", self.name());
        blocks
    }

    /// Everything outside fenced blocks.
    fn prose(&self) -> String {
        let mut open = false;
        let mut prose = String::new();
        for line in self.text.lines() {
            if line.trim_start().starts_with("```") {
                open = !open;
            } else if !open {
                prose.push_str(line);
                prose.push('\n');
            }
        }
        prose
    }

    /// Anchors of its headings, as GitHub makes them.
    fn anchors(&self) -> BTreeSet<String> {
        let headings = self.prose();
        let headings = headings.lines().filter(|line| line.starts_with('#'));
        headings
            .map(|line| {
                let title = line.trim_start_matches('#').trim().to_lowercase();
                let kept = title.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
                kept.map(|c| if c == ' ' { '-' } else { c }).collect()
            })
            .collect()
    }
}

fn documents() -> Vec<Document> {
    let mut paths = Vec::new();
    for folder in [""].iter().chain(&FOLDERS) {
        let Ok(entries) = fs::read_dir(root().join(folder)) else { continue };
        paths.extend(entries.map(|entry| entry.unwrap().path()));
    }
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.sort();
    assert!(paths.len() > 5, "there are hardly any documents: {paths:?}");
    paths.into_iter().map(|path| Document { text: fs::read_to_string(&path).unwrap(), path }).collect()
}

fn stillpoint(args: &[&str], stdin: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_stillpoint"))
        .args(args)
        .env_remove("KUBECONFIG")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // A command that does not read its stdin may be gone already.
    let _ = child.stdin.take().unwrap().write_all(stdin.as_bytes());
    child.wait_with_output().unwrap()
}

/// Without comments and blank lines: what the API server would see.
fn bare(yaml: &str) -> String {
    let lines = yaml.lines().map(|line| line.split(" #").next().unwrap_or("").trim_end());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect::<Vec<_>>().join("\n")
}

#[test]
fn every_object_of_ours_in_a_document_passes_the_linter() {
    let mut checked = 0;
    for document in documents() {
        for (word, block) in document.blocks() {
            if word == "yaml" && block.contains("apiVersion: stillpoint.dev/") {
                let output = stillpoint(&["lint", "-"], &block);
                let said = String::from_utf8_lossy(&output.stdout);
                assert!(output.status.success(), "{}: {said}\n{block}", document.name());
                checked += 1;
            }
        }
    }
    assert!(checked > 0, "no document shows an object");
}

#[test]
fn the_readme_shows_the_first_policy_as_it_is_shipped() {
    let readme = documents().into_iter().find(|document| document.name() == "README.md").unwrap();
    let sample = bare(&fs::read_to_string(root().join("config/samples/first-policy.yaml")).unwrap());
    let policies: Vec<_> =
        readme.blocks().into_iter().filter(|(_, block)| block.contains("kind: BackupPolicy")).collect();
    assert_eq!(policies.iter().map(|(_, block)| bare(block)).collect::<Vec<_>>(), [sample]);
}

#[test]
fn every_storage_trust_in_a_document_is_accepted() {
    let mut checked = 0;
    for document in documents() {
        for (_, block) in
            document.blocks().iter().filter(|(word, block)| word == "yaml" && block.starts_with("entries:"))
        {
            let file: TrustFile =
                serde_yaml::from_str(block).unwrap_or_else(|error| panic!("{}: {error}", document.name()));
            StorageTable::with_trust(&file).unwrap_or_else(|error| panic!("{}: {error}", document.name()));
            checked += 1;
        }
    }
    assert!(checked > 0, "no document shows a storage trust");
}

#[test]
fn every_command_in_a_document_exists_with_its_flags() {
    let mut missing = Vec::new();
    for document in documents() {
        for (_, block) in document.blocks() {
            for line in block.lines() {
                let line = line.trim_start().trim_start_matches("$ ");
                // Two spaces after it: a word of a drawing, not a command.
                let Some(rest) = line.strip_prefix("stillpoint ").filter(|rest| !rest.starts_with(' '))
                else {
                    continue;
                };
                // What follows a comment or another program is not ours.
                let ours = rest.split([';', '|', '>']).next().unwrap().split(" #").next().unwrap();
                let words: Vec<&str> = ours.split_whitespace().collect();
                let mut named = words.iter().skip_while(|word| word.starts_with('-')).copied();
                // Global flags with a value may come first: `-n shop`.
                if words.first().is_some_and(|word| *word == "-n") {
                    named.next();
                }
                let Some(command) = named.next() else { continue };
                if command == "demo" {
                    continue; // Behind a feature that this binary may lack.
                }
                let mut help = vec![command];
                if ["backup", "restore", "hooks"].contains(&command) {
                    help.extend(named.next());
                }
                help.push("--help");
                let output = stillpoint(&help, "");
                let said = String::from_utf8_lossy(&output.stdout);
                let unknown = words
                    .iter()
                    .filter(|word| word.starts_with("--") && !said.contains(word.split('=').next().unwrap()));
                let unknown: Vec<_> = unknown.collect();
                if !output.status.success() || !unknown.is_empty() {
                    missing.push(format!("{}: `{line}` {unknown:?}", document.name()));
                }
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_make_target_in_a_document_exists() {
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile
        .lines()
        .filter_map(|line| line.split_once(':'))
        .map(|(target, _)| target)
        .filter(|target| target.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'))
        .collect();
    let mut missing = Vec::new();
    for document in documents() {
        let inline = document.prose();
        let quoted = inline.split('`').skip(1).step_by(2).map(ToOwned::to_owned);
        let lines = document
            .blocks()
            .into_iter()
            .flat_map(|(_, block)| block.lines().map(ToOwned::to_owned).collect::<Vec<_>>());
        for text in quoted.chain(lines) {
            let Some(rest) = text.trim_start().strip_prefix("make ") else { continue };
            let target = rest.split_whitespace().next().unwrap_or("");
            if !targets.contains(target) {
                missing.push(format!("{}: make {target}", document.name()));
            }
        }
    }
    assert!(missing.is_empty(), "{missing:#?}");
}

#[test]
fn every_relative_link_leads_to_a_file_and_a_heading() {
    let mut broken = Vec::new();
    for document in documents() {
        for link in document.prose().split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, anchor) =
                link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
            let path = if file.is_empty() {
                document.path.clone()
            } else {
                document.path.parent().unwrap().join(file)
            };
            if !path.exists() {
                broken.push(format!("{}: {link}", document.name()));
            } else if let Some(anchor) = anchor {
                let target = Document { text: fs::read_to_string(&path).unwrap_or_default(), path };
                if !target.anchors().contains(anchor) {
                    broken.push(format!("{}: {link}: no such heading", document.name()));
                }
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Comments cite documents as the reason of a rule: what they cite is there.
#[test]
fn documents_that_the_code_cites_exist() {
    let mut cited = BTreeSet::new();
    let mut folders =
        vec![root().join("crates"), root().join("config"), root().join("deploy"), root().join("tests")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path
                .extension()
                .is_some_and(|ending| ["rs", "yaml", "md", "go"].iter().any(|one| ending == *one))
            {
                let text = fs::read_to_string(&path).unwrap_or_default();
                for (at, _) in text.match_indices("docs/") {
                    let rest: String = text[at..]
                        .chars()
                        .take_while(|c| c.is_ascii_alphanumeric() || "/_-.".contains(*c))
                        .collect();
                    if let Some(end) = rest.find(".md") {
                        cited.insert((rest[..end + 3].to_owned(), path.display().to_string()));
                    }
                }
            }
        }
    }
    assert!(!cited.is_empty());
    let gone: Vec<_> = cited.iter().filter(|(document, _)| !root().join(document).exists()).collect();
    assert!(gone.is_empty(), "cited and not there: {gone:#?}");
}
