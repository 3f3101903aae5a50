//! What commands that make machines have in common: which image is looked for, what may be left
//! when they are broken off, and what to do without the image.

use caddis_api::{
    ErrorCode, Machine, MachineId, RawConfig, images::ImageSummary, requests::CreateMachineRequest,
};
use caddis_client::{Client, ClientError};
use serde_json::{Map, Value, json};

use crate::{
    CliError, Printer,
    progress::looking_up,
    prompt,
    render::words,
    session::Session,
    spec::{self, MachineFlags},
};

/// Says which machine there is when what makes it is broken off, by an error or by Ctrl-C.
pub struct Unfinished<'a> {
    printer: &'a Printer,
    app: &'a str,
    machine: Option<MachineId>,
    /// There is nothing to say: what was to be done is done, or nothing was made.
    pub over: bool,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        let app = self.app;
        let text = match &self.machine {
            _ if self.over => return,
            Some(id) => format!(
                "Machine {id} was created in app {app} and remains; 'caddis machine status {id} -a \
                 {app}' shows it, 'caddis machine destroy {id} -a {app} --force' removes it."
            ),
            None => format!(
                "A machine may have been created in app {app}; 'caddis machine list -a {app}' \
                 shows it."
            ),
        };
        // Nobody may be there to read it.
        let _ = self.printer.note(text);
    }
}

/// Prints which flags leave the configuration as it is, so that the server can't warn of them.
pub fn warn(
    printer: &Printer,
    config: &Map<String, Value>,
    flags: &MachineFlags,
) -> std::io::Result<()> {
    let without_effect = spec::without_effect(config, flags);
    without_effect.iter().try_for_each(|text| printer.note(format_args!("Warning: {text}")))
}

/// Makes a machine, and prints what of its configuration has no effect.
///
/// # Errors
/// Those of the request. Whoever has it says what was attempted.
pub async fn attempt<'a>(
    session: &'a Session,
    client: &Client,
    app: &'a str,
    request: &CreateMachineRequest,
) -> Result<(Machine, Unfinished<'a>), ClientError> {
    let printer = &session.printer;
    let mut unfinished = Unfinished { printer, app, machine: None, over: false };
    let created = looking_up(printer, client.create_machine(app, request)).await;
    unfinished.over = created.as_ref().is_err_and(ClientError::is_certain);
    let created = created?;
    unfinished.machine = Some(created.id.clone());
    for warning in &created.warnings {
        // The machine is there, whoever reads this or not.
        let _ = printer.note(format_args!("Warning: {warning}"));
    }
    Ok((created, unfinished))
}

/// The same, and names the image that is looked for. Where the registry that it is in by default is
/// away, the user is offered those that the server holds.
pub async fn create<'a>(
    session: &'a Session,
    client: &Client,
    app: &'a str,
    mut request: CreateMachineRequest,
) -> Result<(Machine, Unfinished<'a>), CliError> {
    let config = request.config.clone().unwrap_or_default();
    let image = config
        .field("image")
        .and_then(|image| image.as_str().map(str::to_owned))
        .unwrap_or_default();
    searching(&session.printer, &image)?;
    let away = match attempt(session, client, app, &request).await {
        Err(error) if is_registry_away(&error) && !names_registry(&image) => error,
        made => {
            return made
                .map_err(|error| failed(session, "could not launch machine", &image, error));
        }
    };
    let image =
        offer(session, client, failed(session, "could not launch machine", &image, away)).await?;
    request.config = Some(with_image(&config, &image));
    searching(&session.printer, &image)?;
    let made = attempt(session, client, app, &request).await;
    made.map_err(|error| failed(session, "could not launch machine", &image, error))
}

/// Prints which image the server looks for.
pub fn searching(printer: &Printer, image: &str) -> Result<(), CliError> {
    match image {
        "" => Ok(()),
        image => Ok(printer.note(format_args!("Searching for image '{image}' remotely..."))?),
    }
}

/// A failed request of something with an image. One that is missing is said in few words, and with
/// --debug in all.
pub fn failed(session: &Session, what: &str, image: &str, error: ClientError) -> CliError {
    let text = error.to_string();
    let missing = match error.code() {
        Some(ErrorCode::ImageUnavailable) if text.contains("was not found") => {
            "Check its name and tag"
        }
        Some(ErrorCode::ImageUnavailable) if text.contains("denied access") => {
            "Its registry may require a login ('docker login' on the server), or the image does \
             not exist"
        }
        _ => return CliError::attempted(what, error),
    };
    if session.globals.debug || image.is_empty() {
        return CliError::attempted(what, error);
    }
    CliError::Failed {
        message: format!("could not find image \"{image}\""),
        hint: Some(format!(
            "{missing}; --debug shows the registry's answer, 'caddis image list' the server's \
             images."
        )),
        request_id: error.request_id().map(str::to_owned),
        is_refusal: true,
    }
}

/// Whether a registry gave no answer.
fn is_registry_away(error: &ClientError) -> bool {
    error.code() == Some(ErrorCode::Unavailable) && error.to_string().contains("registry ")
}

/// Whether an image's name begins with that of its registry.
fn names_registry(image: &str) -> bool {
    image
        .split_once('/')
        .is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

fn with_image(config: &RawConfig, image: &str) -> RawConfig {
    let mut fields = config.fields();
    fields.insert("image".to_owned(), json!(image));
    fields.into()
}

/// One of the images that the server holds, in place of one that can't be had because of `error`.
async fn offer(session: &Session, client: &Client, error: CliError) -> Result<String, CliError> {
    let mut held = client.list_images().await.unwrap_or_default();
    held.retain(|image| !image.names.is_empty());
    held.sort_by(|a, b| a.names[0].cmp(&b.names[0]));
    let names: Vec<_> = held.iter().map(|image| image.names[0].clone()).collect();
    let CliError::Failed { message, request_id, is_refusal, .. } = error else {
        return Err(error);
    };
    if names.is_empty() {
        let hint = "Without a registry, 'caddis image import' imports an image from an archive."
            .to_owned();
        return Err(CliError::Failed { message, hint: Some(hint), request_id, is_refusal });
    }
    let listed = words::few(&names);
    let hint = Some(format!("The server has other images that need no registry: {listed}."));
    let error = CliError::Failed { message, hint, request_id, is_refusal };
    if !session.printer.is_interactive() {
        return Err(error);
    }
    session.printer.note(&error)?;
    let question = "Use an image that the server already has?";
    match prompt::choose(&session.printer, question, &names, "").await {
        Ok(at) => Ok(pinned(&held[at])),
        Err(CliError::Declined) => Err(error),
        Err(other) => Err(other),
    }
}

/// An image by name and digest: what is known by its digest is not looked up in any registry.
fn pinned(image: &ImageSummary) -> String {
    format!("{}@{}", image.names[0], image.digest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registry_is_told_from_a_repository() {
        for (image, expected) in [
            ("ubuntu", false),
            ("ubuntu:22.04", false),
            ("library/ubuntu", false),
            ("ghcr.io/a/b", true),
            ("127.0.0.1:5000/a", true),
            ("registry:5000/a", true),
            ("localhost/a", true),
        ] {
            assert_eq!(names_registry(image), expected, "{image}");
        }
    }
}
