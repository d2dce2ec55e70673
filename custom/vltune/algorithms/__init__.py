"""One file per federated method: configuration and model, assembled from the rooms below."""
