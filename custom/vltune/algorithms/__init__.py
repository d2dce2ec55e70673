"""One file per federated method: its configuration and its model, assembled from the rooms below."""
