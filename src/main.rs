//! The command `nsbox`.

fn main() -> std::process::ExitCode {
    nsbox::cli::main()
}
