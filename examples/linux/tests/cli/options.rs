//! What is common to all commands: help.

use crate::run::Run;

#[tokio::test]
async fn without_a_command_the_help_says_how_to_start() {
    let bare = Run::start(&[]).end().await;
    bare.expect(2, &["Usage: nanonsq", "nanonsq demo ", "nanonsq COMMAND --help"]);
    assert_eq!(bare.printed, [""; 0]);
    let asked = Run::start(&["--help"]).end().await;
    asked.expect(0, &[]);
    assert_eq!(asked.printed.join("\n"), bare.stderr.trim_end());
}
