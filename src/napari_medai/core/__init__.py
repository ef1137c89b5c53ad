"""The words that everything else speaks: volumes, geometry, results, stages, errors. numpy only."""
