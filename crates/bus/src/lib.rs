//! Control messages between gateways and workers: request one worker, ask all workers of a region, publish and watch
//! state. Stores nothing, carries no streams.
