//! The binary: parse, one arm per role, exit code.

use std::process::ExitCode;

use clap::Parser;
use hashinsight::cli::{
    BenchCommand, Cli, Command, ConnectorCommand, OffsetsCommand, ReplayCommand, TokenCommand, TopicsCommand,
};
use hashinsight::config::{self, ConfigError, Loaded};
use hashinsight::db::DbError;
use hashinsight::role;
use hashinsight::telemetry;

/// Bad usage or configuration.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    // clap itself ends with 2 on bad usage and 0 after --help.
    let cli = Cli::parse();
    let loaded = match config::load(cli.config.as_deref()) {
        Ok(loaded) => loaded,
        Err(error) => return fail(&error.into()),
    };
    // Two providers in one build would leave the choice to a panic. An error says that one is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    telemetry::init(loaded.config.log.format());
    // Nothing, unless this is a build for tests.
    let _fail_points = fail::FailScenario::setup();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&error.into()),
    };
    match runtime.block_on(run(cli.command, loaded)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn run(command: Command, loaded: Loaded) -> anyhow::Result<()> {
    let Loaded { config, origins, file } = loaded;
    match command {
        Command::Bench(args) => match args.command {
            BenchCommand::Publish(args) => role::bench::publish(config, &origins, file, args).await,
            BenchCommand::Consume(args) => role::bench::consume(config, &origins, file, args).await,
            BenchCommand::Business(args) => role::bench::business(config, &origins, args).await,
        },
        Command::Migrate(args) => role::migrate::run(&config, args.status, args.json.json).await,
        Command::Serve => role::serve::run(config).await,
        Command::Publish(args) if args.rebase => {
            role::publish::rebase(&config, args.xids_preserved, args.json).await
        }
        Command::Publish(args) => role::publish::run(config, args.source).await,
        Command::Consume(args) => role::consume::run(config, &args.group).await,
        Command::Standalone(args) => role::standalone::run(config, &args).await,
        Command::Topics(args) => match args.command {
            TopicsCommand::Ensure(json) => role::topics::run_ensure(&config, json.json).await,
            TopicsCommand::Describe(json) => role::topics::run_describe(&config, json.json).await,
            TopicsCommand::Alter(args) => role::topics::alter::run(&config, &args).await,
        },
        Command::Slot(args) => role::slot::run(&config, &args.command).await,
        Command::Connector(args) => match args.command {
            ConnectorCommand::Print => role::connector::run_print(&config),
            ConnectorCommand::Register => role::connector::run_register(&config).await,
            ConnectorCommand::Status(json) => role::connector::run_status(&config, json.json).await,
        },
        Command::Doctor(json) => role::doctor::run(&config, json.json).await,
        Command::Lag(args) => role::lag::run(&config, args.group.as_deref(), args.json.json).await,
        Command::Offsets(args) => match args.command {
            OffsetsCommand::Adopt(args) => role::offsets::run_adopt(&config, &args).await,
        },
        Command::Rebuild(args) => role::rebuild::run(config, &args).await,
        Command::Replay(args) => match args.command {
            None => role::replay::run(&config, &args.letters).await,
            Some(ReplayCommand::Replay(letters)) => role::replay::run(&config, &letters).await,
            Some(ReplayCommand::Stats(json)) => role::replay::stats(&config, json.json).await,
            Some(ReplayCommand::Discard(args)) => role::replay::discard(&config, &args).await,
        },
        Command::Config(json) => role::config::run(&origins, json.json),
        Command::Token(args) => match args.command {
            TokenCommand::Jwt(jwt) => role::token::jwt(&config, &jwt),
        },
    }
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("hashinsight: {error:#}");
    let usage = error
        .chain()
        .any(|cause| cause.is::<ConfigError>() || matches!(cause.downcast_ref(), Some(DbError::Config(_))));
    ExitCode::from(if usage { USAGE } else { 1 })
}
