//! The report: settings, what the kernel accepted of them, and what each round cost.

use crate::arguments::Settings;
use crate::clock::{Sample, median};
use crate::json::Json;
use crate::ring::Ring;
use crate::target::Target;

/// Everything about a run, in one object. `samples` holds at least one round.
pub fn build(
    settings: &Settings,
    target: Option<&Target>,
    ring: &mut Ring,
    samples: &[Sample],
) -> Json {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut members = vec![
        ("command", Json::string(settings.kind.name())),
        ("kernel", Json::string(kernel.trim())),
        ("batch", Json::Integer(settings.batch.into())),
        ("operations", Json::Integer(settings.operations)),
        ("rounds", Json::Integer(settings.rounds.into())),
        ("warmup", Json::Integer(settings.warmup)),
        ("wait", Json::string(settings.wait.name())),
    ];
    if let (Some(file), Some(target)) = (&settings.file, target) {
        members.extend([
            ("file", Json::string(file.path.to_string_lossy())),
            ("fileBytes", Json::Integer(target.file_bytes())),
            ("blockBytes", Json::Integer(file.block_bytes.into())),
            ("memoryBlocks", Json::Integer(file.memory_blocks.into())),
            ("direct", Json::Bool(file.direct)),
            ("preRead", Json::Bool(file.pre_read)),
            ("fixedBuffers", Json::Bool(file.fixed_buffers)),
            ("registeredFile", Json::Bool(file.registered_file)),
            ("seed", Json::Integer(file.seed)),
        ]);
    }
    members.push(("ring", ring_members(ring)));
    members.push(("perOperation", costs(samples)));
    Json::Object(members)
}

fn ring_members(ring: &mut Ring) -> Json {
    Json::Object(vec![
        ("entries", Json::Integer(ring.entries() as u64)),
        ("completionEntries", Json::Integer(ring.completion_entries() as u64)),
        ("setupFlags", Json::Array(ring.setup_flags().map(Json::string).collect())),
        ("registeredRing", Json::Bool(ring.is_registered())),
    ])
}

fn costs(samples: &[Sample]) -> Json {
    let column = |value: fn(&Sample) -> f64| {
        let rounds: Vec<f64> = samples.iter().map(value).collect();
        Json::Object(vec![
            ("median", Json::Decimal(median(rounds.clone()))),
            ("rounds", Json::Array(rounds.into_iter().map(Json::Decimal).collect())),
        ])
    };
    Json::Object(vec![
        ("wallNs", column(|sample| sample.wall_ns)),
        ("cpuNs", column(|sample| sample.cpu_ns)),
        ("enters", column(|sample| sample.enters)),
        ("diskReadBytes", column(|sample| sample.disk_read_bytes)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_of_nops_names_the_settings_and_one_figure_a_round() {
        let settings = crate::arguments::parse(&["nop".into(), "--batch".into(), "3".into()]);
        let mut ring = Ring::set_up(3).unwrap();
        let sample = |wall_ns| Sample { wall_ns, cpu_ns: 1.0, enters: 0.5, disk_read_bytes: 0.0 };
        let report = build(&settings.unwrap(), None, &mut ring, &[sample(70.0), sample(60.5)]);
        let report = report.to_string();
        for part in [
            r#"{"command":"nop","kernel":""#,
            r#""batch":3,"operations":1000000,"rounds":1,"warmup":48,"wait":"batch","ring":{"entries":4,"#,
            r#""perOperation":{"wallNs":{"median":65.25,"rounds":[70,60.5]},"cpuNs":{"median":1,"#,
        ] {
            assert!(report.contains(part), "{report}");
        }
        assert!(!report.contains("blockBytes"));
    }
}
