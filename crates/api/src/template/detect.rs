//! Finds the template for a container by the name of its image.
//!
//! Only the name is looked at: host, port, tag and digest of a reference never match, so that a registry or an
//! organisation named after a database is not taken for one. The longest pattern wins, then the first image, then the
//! template's name, so that the choice is the same on every run.

use std::cmp::Reverse;

use super::Recipe;

/// The template that fits a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Detected {
    /// Name of the template.
    pub template: String,
    /// Index of the image that matched: the container that hooks run in.
    pub image: usize,
}

/// Length of the pattern, then the first image, then the first name: the greatest wins.
type Rank<'a> = (usize, Reverse<usize>, Reverse<&'a str>);

/// The template whose `detect.images` fits one of a pod's images, given in the order of its containers.
///
/// A pattern without `/` is compared with the last part of the image's name (`postgres` in
/// `docker.io/library/postgres:16`), one with `/` with the whole name without the registry's host.
pub fn detect<'a>(
    images: &[&str],
    catalog: impl IntoIterator<Item = (&'a str, &'a Recipe)>,
) -> Option<Detected> {
    let mut best: Option<(Rank<'a>, Detected)> = None;
    for (template, recipe) in catalog {
        let patterns = recipe.detect.iter().flat_map(|detect| detect.images.iter());
        for pattern in patterns {
            let Some(image) = images.iter().position(|image| fits(pattern, image)) else { continue };
            let rank = (pattern.len(), Reverse(image), Reverse(template));
            if best.as_ref().is_none_or(|(held, _)| rank > *held) {
                best = Some((rank, Detected { template: template.to_owned(), image }));
            }
        }
    }
    best.map(|(_, detected)| detected)
}

fn fits(pattern: &str, image: &str) -> bool {
    let path = path_of(image);
    let compared = if pattern.contains('/') { path } else { path.rsplit('/').next().unwrap_or(path) };
    glob(pattern.as_bytes(), compared.as_bytes())
}

/// The name of a reference without host, tag and digest.
fn path_of(image: &str) -> &str {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    let name = match name.rfind(':') {
        Some(colon) if !name[colon..].contains('/') => &name[..colon],
        Some(_) | None => name,
    };
    match name.split_once('/') {
        // A first part is a host when it looks like one (the container runtimes' own rule).
        Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
        Some(_) | None => name,
    }
}

/// `*` stands for any number of characters, everything else for itself. Linear in practice: it only ever goes back
/// to the last `*`.
fn glob(pattern: &[u8], text: &[u8]) -> bool {
    let (mut at, mut seen) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while seen < text.len() {
        if pattern.get(at) == Some(&b'*') {
            star = Some((at, seen));
            at += 1;
        } else if pattern.get(at) == Some(&text[seen]) {
            at += 1;
            seen += 1;
        } else if let Some((star_at, star_seen)) = star {
            at = star_at + 1;
            seen = star_seen + 1;
            star = Some((star_at, star_seen + 1));
        } else {
            return false;
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::template::Detect;

    fn recipe(images: &[&str]) -> Recipe {
        Recipe {
            detect: Some(Detect { images: images.iter().map(|image| (*image).to_owned()).collect() }),
            ..Recipe::default()
        }
    }

    #[test]
    fn an_image_is_known_by_its_name_alone() {
        let postgres = recipe(&["postgres", "postgresql*", "*/pgvector/pgvector"]);
        for image in [
            "postgres",
            "postgres:16",
            "postgres@sha256:00",
            "docker.io/library/postgres:16-alpine",
            "localhost:5000/postgres",
            "ghcr.io/x/postgresql-repmgr:1",
        ] {
            let found = detect(&[image], [("postgresql", &postgres)]);
            assert_eq!(found.map(|found| found.template).as_deref(), Some("postgresql"), "{image}");
        }
        for image in
            ["postgres-exporter", "postgres/redis:7", "postgres.example.com/redis", "x:5432/postgres-x"]
        {
            assert_eq!(detect(&[image], [("postgresql", &postgres)]), None, "{image}");
        }
    }

    #[test]
    fn the_longest_pattern_wins_and_says_which_container() {
        let (short, long) = (recipe(&["maria*"]), recipe(&["mariadb-galera"]));
        let found = detect(&["envoy", "mariadb-galera:1"], [("a", &short), ("b", &long)]);
        assert_eq!(found, Some(Detected { template: "b".into(), image: 1 }));
    }
}
