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
        assert!(page.contains(".SH \"SEE ALSO\"\nonce(1)"), "{command}: {page}");
        assert!(!page.contains("EXTRA"), "{command}: {page}");
        let footer = concat!("1 \" \" \"Onlyonce ", env!("CARGO_PKG_VERSION"), "\" Onlyonce\n");
        assert!(page.contains(&format!(".TH once-{command} {footer}")), "{command}: {page}");
    }
    let txn = std::fs::read_to_string(folder.path().join("once-txn.1")).expect("it is there");
    assert!(txn.contains("STATEMENT...") && txn.contains(".SH EXAMPLES\n.nf\n"), "{txn}");
    let close = std::fs::read_to_string(folder.path().join("once-session-close.1"));
    assert!(close.expect("it is there").contains("once(1), once\\-session(1)"));
    let missing = once(&["man", "/no/such/folder"]);
    assert_eq!(missing.status.code(), Some(1));
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

/// What bash offers for the last word of a command line.
fn offered(words: &[&str]) -> String {
    let ask = "source <(\"$1\" completions bash); shift; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); \
               _once once \"${COMP_WORDS[-1]}\" \"${COMP_WORDS[-2]}\"; echo \"${COMPREPLY[*]}\"";
    let mut bash = Command::new("bash");
    let ran = bash.args(["-c", ask, "bash"]).arg(binaries::once()).args(words).output();
    let ran = ran.expect("bash runs");
    assert!(ran.status.success(), "{ran:?}");
    String::from_utf8(ran.stdout).expect("text").trim().to_owned()
}

/// Where a file is named, bash is left to offer file names; options are offered behind a '-'.
#[test]
fn files_are_completed() {
    for command in ["backup", "man"] {
        assert_eq!(offered(&["once", command, ""]), "", "{command}");
        assert!(offered(&["once", command, "--dead"]).contains("--deadline"), "{command}");
    }
    assert!(offered(&["once", "backup", "--semantics", ""]).contains("best-effort"));
    assert_eq!(offered(&["once", "put-if"]), "put-if-absent");
    let zsh = String::from_utf8(once(&["completions", "zsh"]).stdout).expect("text");
    assert!(zsh.contains("standard output:_files'"), "{zsh}");
}
