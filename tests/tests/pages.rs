//! What is generated from the definitions of `once`'s arguments.

use std::process::{Command, Output};

use onlyonce_tests::binaries;

fn once(arguments: &[&str]) -> Output {
    Command::new(binaries::once()).args(arguments).output().expect("once runs")
}

/// The commands, as `once --help` lists them.
fn commands() -> Vec<String> {
    let help = String::from_utf8(once(&["--help"]).stdout).expect("text");
    let list = help.split("Commands:\n").nth(1).and_then(|rest| rest.split("\n\n").next());
    let names = list.expect("a list").lines().filter(|line| !line.starts_with("   "));
    names.filter_map(|line| line.split_whitespace().next().map(str::to_owned)).collect()
}

/// Each command has a page of its own.
#[test]
fn every_command_has_a_man_page() {
    let folder = tempfile::tempdir().expect("a folder");
    let written = once(&["man", folder.path().to_str().expect("text")]);
    assert!(written.status.success(), "{written:?}");
    let commands = commands();
    assert!(commands.len() > 10, "{commands:?}");
    for command in commands.iter().filter(|name| *name != "help") {
        let page = folder.path().join(format!("once-{command}.1"));
        let page = std::fs::read_to_string(&page).expect("it is there");
        assert!(page.contains(".SH NAME"), "{command}: {page}");
    }
    let missing = once(&["man", "/no/such/folder"]);
    assert_eq!(missing.status.code(), Some(2));
    let said = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(said.contains("/no/such/folder: No such file"), "{said}");
}

/// Every shell's completions know the commands; bash takes them.
#[test]
fn shells_complete_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let script = once(&["completions", shell]);
        let text = String::from_utf8(script.stdout).expect("text");
        assert!(text.contains("put-if-absent"), "{shell}");
    }
    let check = "source <(\"$1\" completions bash) && complete -p once";
    let bash = Command::new("bash").args(["-c", check, "bash"]).arg(binaries::once()).output();
    let bash = bash.expect("bash runs");
    assert!(bash.status.success(), "{bash:?}");
}
