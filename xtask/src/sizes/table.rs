//! Prints the measurements.

use serde_json::{Value, json};

use super::Row;
use super::image::Image;
use super::trace::Trace;

/// Prefix of the constants with sizes of types.
pub(crate) const SIZE_OF: &str = "SIZE_OF_";

/// Other clients, measured in the same way on the same machine and toolchain: name, flash z and s,
/// static RAM and its part for buffers, peak stack z and s, x86-64 instructions, Cortex-M0
/// instructions z and s.
const OTHERS: [(&str, [u64; 9]); 8] = [
    ("minimq 0.13.5 (MQTT)", [22044, 23184, 1560, 512, 1608, 1248, 2594, 8853, 7165]),
    ("mountain-mqtt 0.2.0 (MQTT)", [23540, 22116, 1896, 256, 3368, 3464, 2172, 9575, 7582]),
    ("rust-mqtt 0.6.0 (MQTT)", [45964, 56832, 1024, 64, 1264, 1072, 1987, 5334, 3896]),
    ("reqwless 0.14.0 (HTTP)", [24332, 27200, 1104, 256, 1584, 1552, 5239, 10407, 9054]),
    ("floor: PUB, no copy, blocking", [188, 180, 0, 0, 36, 24, 52, 208, 165]),
    ("floor: PUB, copied once, async", [1164, 1168, 256, 221, 112, 80, 171, 1440, 1299]),
    ("a producer written by hand", [2384, 2324, 184, 32, 128, 96, 306, 891, 626]),
    ("registration alone, per PING", [668, 672, 48, 0, 40, 40, 318, 365, 363]),
];

pub(crate) fn json(row: &Row, toolchain: &str) -> Value {
    json!({
        "flash_z": row.flash_z,
        "flash_s": row.flash_s,
        "static_ram": row.static_ram,
        "buffers": row.buffers,
        "peak_stack": row.peak_stack_z.max(row.peak_stack_s),
        "peak_stack_z": row.peak_stack_z,
        "peak_stack_s": row.peak_stack_s,
        "ram_z": row.ram_z(),
        "m0_instr_s": row.m0_instr_s,
        "m0_instr_z": row.m0_instr_z,
        "m0_instr_s_late": row.m0_instr_s_late,
        "m0_instr_z_late": row.m0_instr_z_late,
        "m0_instr_s_odd": row.m0_instr_s_odd,
        "x86_instr_o3": row.x86_instr_o3,
        "x86_instr_o3_late": row.x86_instr_o3_late,
        "toolchain": toolchain,
    })
}

pub(crate) fn print(rows: [&Row; 6], toolchain: &str) {
    println!(
        "thumbv6m-none-eabi, {toolchain}: what a client adds to the same firmware without it: bytes, and \
         instructions\nper acknowledged message of 200 bytes\n"
    );
    println!(
        "| client                                 | flash z | flash s | static RAM | of which \
         buffers | peak stack z / s | RAM + stack z besides buffers | Cortex-M0 instr z / s | x86-64 instr O3 \
         | writes + reads |"
    );
    println!("|:{:-<39}|-:|-:|-:|-:|-:|-:|-:|-:|-:|", "");
    let ours = [
        "**nanonsq publisher**",
        "**nanonsq publisher, one task**",
        "**nanonsq publisher + registration**",
        "... with two nsqlookupds",
        "**nanonsq publisher + consumer**",
        "... that asks an nsqlookupd",
    ];
    for (name, row) in ours.iter().zip(rows) {
        let figures = [
            row.flash_z,
            row.flash_s,
            row.static_ram,
            row.buffers,
            row.peak_stack_z,
            row.peak_stack_s,
            row.x86_instr_o3,
            row.m0_instr_z,
            row.m0_instr_s,
        ];
        print_row(name, figures, &format!("{}+{}", row.writes, row.reads));
    }
    for (name, figures) in OTHERS {
        print_row(name, figures, "");
    }
    println!(
        "\nInstructions per message: the answer in the same poll, one wake later, and at an odd \
         address:\n"
    );
    println!("| client | Cortex-M0 s | later | odd | Cortex-M0 z | later | x86-64 O3 | later |");
    println!("|:--|-:|-:|-:|-:|-:|-:|-:|");
    for (name, row) in ours.iter().zip(rows) {
        println!(
            "| {name} | {} | {} | {} | {} | {} | {} | {} |",
            row.m0_instr_s,
            row.m0_instr_s_late,
            row.m0_instr_s_odd,
            row.m0_instr_z,
            row.m0_instr_z_late,
            row.x86_instr_o3,
            row.x86_instr_o3_late,
        );
    }
}

fn print_row(name: &str, figures: [u64; 9], calls: &str) {
    let [flash_z, flash_s, ram, buffers, stack_z, stack_s, x86, m0_z, m0_s] = figures;
    let stack = format!("{stack_z} / {stack_s}");
    let besides = (ram + stack_z).saturating_sub(buffers);
    let m0 = format!("{m0_z} / {m0_s}");
    println!(
        "| {name:<38} | {flash_z:>7} | {flash_s:>7} | {ram:>10} | {buffers:>16} | {stack:>16} | \
         {besides:>15} | {m0:>21} | {x86:>15} | {calls:>14} |"
    );
}

pub(crate) fn nsqd_json([flash_z, flash_s, static_ram]: [u64; 3], toolchain: &str) -> Value {
    json!({
        "flash_z": flash_z,
        "flash_s": flash_s,
        "static_ram": static_ram,
        "toolchain": toolchain,
    })
}

pub(crate) fn print_nsqds([plain, http]: [[u64; 3]; 2]) {
    println!(
        "\nAn nsqd of 2 topics, 2 channels, 2 clients and 2 KiB for messages, which publishes:\n"
    );
    println!("| nsqd                                   | flash z | flash s | static RAM |");
    println!("|:{:-<39}|-:|-:|-:|", "");
    for (name, [flash_z, flash_s, ram]) in
        [("without HTTP and nsqlookupds", plain), ("with HTTP and one nsqlookupd", http)]
    {
        println!("| {name:<38} | {flash_z:>7} | {flash_s:>7} | {ram:>10} |");
    }
}

/// Prints sizes of types on the target, from `tests/sizes`.
pub(crate) fn print_types(image: &Image) {
    println!("\nBytes of types and futures on thumbv6m:\n");
    for (name, size) in image.words(SIZE_OF) {
        println!("  {name:<24} {size:>5}");
    }
}

pub(crate) fn print_profile(title: &str, image: &Image, trace: &Trace) {
    const LINES: usize = 40;
    println!("\n## {title}\n\nLargest functions, bytes of flash:\n");
    let mut functions = image.functions().to_vec();
    functions.sort_by_key(|function| std::cmp::Reverse(function.size));
    for function in functions.iter().take(LINES) {
        println!("{:>8} {}", function.size, function.name);
    }
    println!("\nInstructions of one message:\n");
    for (name, count) in trace.profile.iter().take(LINES) {
        println!("{count:>8} {name}");
    }
    println!("\nCalls of one message: {:?}", trace.calls);
    println!("Each message: {:?}", trace.messages);
    println!("\nDeepest stack:\n");
    for (name, size) in &trace.deepest {
        println!("{size:>8} {name}");
    }
}
