//! What this process is at, as series: whether it leads, its loop and its queue, the rules it knows, its memory.
//!
//! Asked for at the scrape and remembered nowhere.

use std::fmt::{Display, Write as _};

use jiff::Timestamp;

use crate::collector::{escape, seconds};

/// What a process is at.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProcessFacts {
    /// Whether it is the replica that schedules.
    pub leads: bool,
    /// When the loop of the scheduler last went round, while it leads.
    pub last_tick: Option<Timestamp>,
    /// Policies that are due and wait for a worker.
    pub queued: usize,
    /// Policies that are worked on.
    pub busy: usize,
    /// Most policies that are worked on at once.
    pub workers: usize,
    /// The ProtectionRules.
    pub rules: Vec<RuleFacts>,
}

/// What one ProtectionRule comes to, as its status says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuleFacts {
    /// Its name.
    pub name: String,
    /// Whether it decides anything.
    pub in_force: bool,
    /// Policies in the namespaces that it selects.
    pub policies: u32,
    /// Policies that are refused because of it.
    pub outside: u32,
}

/// The facts as text.
pub fn render(facts: &ProcessFacts) -> String {
    let mut out = String::new();
    let mut gauge = |name: &str, help: &str, value: &dyn Display| {
        head(&mut out, name, help);
        // Writing to a String cannot fail.
        let _ = writeln!(out, "{name} {value}");
    };
    gauge("stillpoint_leader", "1 on the replica that schedules, 0 on the others.", &u8::from(facts.leads));
    if let Some(at) = facts.last_tick {
        gauge(
            "stillpoint_scheduler_last_tick_timestamp_seconds",
            "When the loop of the scheduler last went round; absent on a replica that does not schedule.",
            &seconds(at),
        );
    }
    gauge("stillpoint_queue_depth", "Policies that are due and wait for a worker.", &facts.queued);
    gauge("stillpoint_workers_busy", "Policies that are worked on.", &facts.busy);
    gauge("stillpoint_workers", "Most policies that are worked on at once.", &facts.workers);
    let mut of_rules = |name: &str, help: &str, value: fn(&RuleFacts) -> u32| {
        if !facts.rules.is_empty() {
            head(&mut out, name, help);
        }
        for rule in &facts.rules {
            let _ = write!(out, "{name}{{rule=\"");
            escape(&rule.name, &mut out);
            let _ = writeln!(out, "\"}} {}", value(rule));
        }
    };
    of_rules("stillpoint_rule_in_force", "1 while the ProtectionRule decides anything.", |rule| {
        u32::from(rule.in_force)
    });
    of_rules("stillpoint_rule_policies", "Policies in the namespaces that the rule selects.", |rule| {
        rule.policies
    });
    of_rules(
        "stillpoint_rule_policies_outside",
        "Policies that are refused because they are outside the rule.",
        |rule| rule.outside,
    );
    out.push_str(&render_memory());
    out
}

fn head(out: &mut String, name: &str, help: &str) {
    let _ = writeln!(out, "# HELP {name} {help}\n# TYPE {name} gauge");
}

/// Memory of this process that is in RAM, as the standard series every Prometheus client has. Empty where the
/// kernel does not tell.
fn render_memory() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    match resident_bytes(&status) {
        Some(bytes) => format!(
            "# HELP process_resident_memory_bytes Resident memory size in bytes.\n\
             # TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes {bytes}\n"
        ),
        None => String::new(),
    }
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("Name:\tx\nVmRSS:\t   20480 kB\n"), Some(20_971_520));
        assert_eq!(resident_bytes("Name:\tx\n"), None);
    }

    #[test]
    fn a_replica_that_does_not_schedule_has_no_tick_and_one_that_does_says_when() {
        let idle = ProcessFacts { workers: 48, ..ProcessFacts::default() };
        let text = render(&idle);
        assert!(text.contains("\nstillpoint_leader 0\n") && !text.contains("last_tick"), "{text}");
        assert!(!text.contains("stillpoint_rule"), "{text}");
        let gold = RuleFacts { name: "gold".into(), in_force: true, policies: 7, outside: 2 };
        let silver = RuleFacts { name: "silver".into(), ..RuleFacts::default() };
        let at: Timestamp = "2026-11-21T02:00:00.5Z".parse().unwrap();
        let busy =
            ProcessFacts { leads: true, last_tick: Some(at), queued: 3, rules: vec![gold, silver], ..idle };
        let text = render(&busy);
        for line in [
            "stillpoint_leader 1",
            "stillpoint_scheduler_last_tick_timestamp_seconds 1795226400.5",
            "stillpoint_queue_depth 3",
            "stillpoint_workers 48",
            r#"stillpoint_rule_in_force{rule="gold"} 1"#,
            r#"stillpoint_rule_in_force{rule="silver"} 0"#,
            r#"stillpoint_rule_policies{rule="gold"} 7"#,
            r#"stillpoint_rule_policies_outside{rule="gold"} 2"#,
        ] {
            assert!(text.contains(&format!("\n{line}\n")), "{line}\n{text}");
        }
    }
}
