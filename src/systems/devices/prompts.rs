//! The beginnings of conversations about what is watched.

use crate::contract::prompt::{AgentPrompt, PromptField};

pub const RECOMMENDATION_GUIDE: AgentPrompt = AgentPrompt {
    name: "recommendation_guide",
    summary: "Choose something to watch from your watchlist, and start it on a device",
    fields: &[
        PromptField { name: "mood", summary: "The mood: funny, calm", default: Some("any mood") },
        PromptField {
            name: "minutes",
            summary: "The time there is, in minutes",
            default: Some("any number of"),
        },
    ],
    text: "Help me to choose something to watch: for {mood}, with {minutes} minutes of time.\n\n\
        1. Read `get_shared_state`: my watchlist, and the positions at which I stopped. Something that I have begun comes \
        first if it fits.\n\
        2. For two or three candidates call `get_content_availability`, and leave out what none of my platforms has.\n\
        3. Name them with one sentence each, and ask me which one, and on which of my devices (`list_devices`; one that is \
        online).\n\
        4. Only then call `initiate_playback` with that content and that device.",
};
