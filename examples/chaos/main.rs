mod node;
mod recorder;
mod world;
fn main() {}
